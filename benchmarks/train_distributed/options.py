"""The command line of `python -m benchmarks.train_distributed`, its defaults and its checks."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.common.cli import Parser, UsageError
from benchmarks.common.methods import Method
from benchmarks.common.options import OPTIMIZERS, flag


class Options(NamedTuple):
    """What the command line says."""

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


def parse(argv: Sequence[str] | None, description: str | None) -> Options:
    """Reads the command line and checks what needs no devices."""
    args = vars(_parser(description).parse_args(argv))
    if args["learning_rate"] is None:
        args["learning_rate"] = 1e-3 if args["optimizer"] == "adamw" else 0.05
    options = Options(**args)
    for name in ("steps", "batch_size", "microbatches", "shards", "save_every"):
        if getattr(options, name) < 1:
            raise UsageError(f"{flag(name)} {getattr(options, name)} must be at least 1.")
    if not 0 < options.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {options.learning_rate} must be a positive number.")
    return options


def check(options: Options, method: Method, devices: int, examples: int) -> None:
    """The batch can be shared by the devices, and there are examples enough."""
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
            f"--shards {shards} keeps a perturbed copy of all parameters on each device, so there "
            "is nothing to cut up: give --sharding data."
        )
    if shards > 1 and method.ascent_fraction < 1:
        raise UsageError(
            f"--shards {shards} and ascent_fraction={method.ascent_fraction:g} exclude each other, "
            "for every shard needs its own gradient: take one of them away."
        )
    if options.axes == "explicit" and devices > 1 and method.ascent_fraction < 1:
        raise UsageError(
            f"ascent_fraction={method.ascent_fraction:g} takes a slice of the batch that Explicit "
            "axes may not be able to share equally: give --axes auto."
        )
    parts = max(devices, shards) * passes
    if batch % parts:
        raise UsageError(
            f"--batch-size {batch} cannot be shared equally by {devices} devices, --shards "
            f"{shards} and --microbatches {passes}: give a multiple of {parts}, such as "
            f"{-(-batch // parts) * parts}."
        )


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.train_distributed",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--method",
        default="sam:rho=0.1",
        help="one method, named as for benchmarks.compare: sam:rho=0.2:every=5, or sgd for the "
        "plain gradient (default: sam:rho=0.1)",
    )
    training.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    training.add_argument(
        "--data",
        default="digits",
        help="digits, mnist, fashion_mnist, cifar10 or PATH.npz, as for benchmarks.compare",
    )
    training.add_argument("--data-dir", help="as for benchmarks.compare")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    training.add_argument("--learning-rate", type=float, help="default: 0.05, with adamw 0.001")
    training.add_argument("--steps", type=int, default=300, help="default: 300")
    training.add_argument(
        "--batch-size", type=int, default=64, help="of all devices together (default: 64)"
    )
    training.add_argument("--seed", type=int, default=0)
    scale = parser.add_argument_group("devices")
    scale.add_argument(
        "--sharding",
        choices=("data", "fsdp"),
        default="data",
        help="data cuts the batch only; fsdp also cuts each parameter and its optimizer state "
        "along the largest axis that the devices divide (default: data)",
    )
    scale.add_argument(
        "--axes",
        choices=("auto", "explicit"),
        default="auto",
        help="whether XLA chooses shardings, or JAX's types carry them (default: auto)",
    )
    scale.add_argument(
        "--microbatches", type=int, default=1, help="passes over parts of the batch (default: 1)"
    )
    scale.add_argument(
        "--shards",
        type=int,
        default=1,
        help="m-sharpness: each of so many parts of the batch perturbs by its own gradient; a "
        "multiple of the number of devices (default: 1)",
    )
    scale.add_argument("--coordinator", help="HOST:PORT of process 0")
    scale.add_argument("--processes", type=int, help="how many processes there are")
    scale.add_argument("--process-id", type=int, help="which of them this is, from 0")
    output = parser.add_argument_group("output")
    output.add_argument("--checkpoint", help="folder to save the state in, and to go on from")
    output.add_argument("--save-every", type=int, default=100, help="in steps (default: 100)")
    output.add_argument("--out", help="FILE.npz for the final parameters and the losses")
    return parser
