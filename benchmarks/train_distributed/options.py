"""The options of `python -m benchmarks.train_distributed`, and their checks."""

from typing import Any, NamedTuple

from benchmarks.common.cli import UsageError, check_at_least
from benchmarks.common.methods import Method


class DistributedOptions(NamedTuple):
    """All options of the command, as its `--help` describes them.

    Attributes:
      method: one method, as `benchmarks.compare` names it.
      model: `mlp` or `cnn`.
      data: the name of a data set, or the path of an `.npz` file.
      data_dir: a folder with local copies of the data sets, or None.
      optimizer: `sgd` or `adamw`.
      learning_rate: the start of the cosine schedule.
      steps: the number of training steps.
      batch_size: the number of examples per step, on all devices together.
      seed: the seed of the parameters and of the batches.
      sharding: `data` or `fsdp`.
      axes: `auto` or `explicit`.
      microbatches: the number of parts of the batch that are processed one after another.
      shards: the number of parts of the batch that are perturbed by their own gradients.
      checkpoint: a folder for checkpoints, or None.
      save_every: the number of steps between checkpoints.
      out: a file for the final parameters and the losses, or None.
      coordinator: HOST:PORT of process 0, or None.
      processes: the number of processes, or None.
      process_id: the number of this process, or None.
    """

    method: str
    model: str
    data: str
    data_dir: str | None
    optimizer: str
    learning_rate: float
    steps: int
    batch_size: int
    seed: int
    sharding: str
    axes: str
    microbatches: int
    shards: int
    checkpoint: str | None
    save_every: int
    out: str | None
    coordinator: str | None
    processes: int | None
    process_id: int | None


def complete(**given: Any) -> DistributedOptions:
    """Returns the options, with the default learning rate if it is None.

    Raises:
      UsageError: if a value is out of range. These checks need no devices.
    """
    if given["learning_rate"] is None:
        given["learning_rate"] = 1e-3 if given["optimizer"] == "adamw" else 0.05
    options = DistributedOptions(**given)
    whole = ("steps", "batch_size", "microbatches", "shards", "save_every")
    check_at_least(options._asdict(), dict.fromkeys(whole, 1) | {"seed": 0})
    if not 0 < options.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {options.learning_rate} must be a positive number.")
    return options


def check(options: DistributedOptions, method: Method, devices: int, examples: int) -> None:
    """Checks that the devices can share the batch equally and that there are enough examples.

    Args:
      options: the options of the command.
      method: the method that is trained.
      devices: the number of devices.
      examples: the number of training examples.

    Raises:
      UsageError: if a check fails.
    """
    batch, passes, shards = options.batch_size, options.microbatches, options.shards
    if batch > examples:
        raise UsageError(
            f"--batch-size {batch} is more than the {examples} training examples. Give "
            f"--batch-size {examples // devices * devices} or less."
        )
    if shards > 1 and shards % devices:
        raise UsageError(
            f"--shards {shards} cannot be spread over {devices} devices: give a multiple of "
            f"{devices}, so that each device perturbs by its own examples."
        )
    if shards > 1 and options.sharding == "fsdp":
        raise UsageError(
            f"--shards {shards} keeps a perturbed copy of all parameters on each device, so that "
            "parameters cannot be sharded: give --sharding data."
        )
    if shards > 1 and method.ascent_fraction < 1:
        raise UsageError(
            f"--shards {shards} and ascent_fraction={method.ascent_fraction:g} exclude each other, "
            "because every shard needs its own gradient: leave out one of them."
        )
    if options.axes == "explicit" and devices > 1 and method.ascent_fraction < 1:
        raise UsageError(
            f"ascent_fraction={method.ascent_fraction:g} takes a slice of the batch, which the "
            "devices may not be able to share equally with explicit axes: give --axes auto."
        )
    parts = max(devices, shards) * passes
    if batch % parts:
        raise UsageError(
            f"--batch-size {batch} cannot be divided equally among {devices} devices, --shards "
            f"{shards} and --microbatches {passes}: give a multiple of {parts}, such as "
            f"{-(-batch // parts) * parts}."
        )
