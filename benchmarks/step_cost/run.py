"""Measures all networks and optimizers, prints the tables and writes the results."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.common import results
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.models.build import build
from benchmarks.step_cost import peers, plot, tables
from benchmarks.step_cost.contestants import Batch, contestants, methods
from benchmarks.step_cost.costs import networks
from benchmarks.step_cost.timing import in_turns

IMAGE, QUICK_IMAGE = 32, 8
WIDTH = 120  # of the tables where the output does not go to a terminal
QUICK_SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (32,)},
    "cnn": {"channels": (8, 8)},
    "resnet18": {"widths": (4, 8), "blocks": 1},
    "vit": {"width": 16, "depth": 1, "heads": 2},
}
CLASSES = 10


class StepCostOptions(NamedTuple):
    """What to measure.

    Attributes:
      models: names of networks.
      methods: methods as `benchmarks.compare` names them, or names without settings.
      optimizers: names of optimizers.
      batch_size: the number of images per step.
      rounds: how often each step is timed.
      peers: whether to measure PyTorch too, for the MLP.
      quick: whether to measure small networks that are compiled without optimization.
    """

    models: Sequence[str]
    methods: Sequence[str]
    optimizers: Sequence[str]
    batch_size: int
    rounds: int
    peers: bool = False
    quick: bool = False


def run(options: StepCostOptions, folder: pathlib.Path, *, command: str = "") -> results.Results:
    """Measures the networks one after another, and prints and writes each when it is finished.

    Args:
      options: what to measure.
      folder: where the results go. Nothing in it is deleted.
      command: the command line that is recorded.

    Returns:
      The results as they are written to the folder: one run per network, optimizer and step.
    """
    for optimizer in options.optimizers:
        methods(options.methods, optimizer)  # raises errors before any work
    if options.peers:
        peers.check_installed()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    versions = peers.versions() if options.peers else {}
    record = results.fresh(
        command,
        options._asdict(),
        environment=results.environment() | versions,
        parameter_bytes={},
    )
    results.start(folder, record, resume=False)
    console.print(tables.EXPLANATION, "\n", highlight=False)
    for name in options.models:
        model, batch = _problem(name, options)
        record["parameter_bytes"][name] = _parameter_bytes(model, batch)
        for optimizer in options.optimizers:
            with console.status(f"{name}, {optimizer}"):
                record["runs"] += _measure(name, model, batch, optimizer, options)
            results.save(folder, record)
            for table in tables.of_network(networks(record)[-1]):
                table.print(console)
    report(folder, record)
    files = [name for name in results.FILES if (folder / name).exists()]
    written = ", ".join([*files, "table.md", plot.FILE])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)
    return record


def report(folder: pathlib.Path, record: results.Results) -> None:
    """Writes the tables and the figure of finished results to the folder."""
    (folder / "table.md").write_text(tables.markdown(record), encoding="utf-8")
    plot.draw(folder, networks(record))


def _problem(name: str, options: StepCostOptions) -> tuple[nn.Module, Batch]:
    """Returns a network and a batch of random images; the cost of a step depends on neither."""
    random = np.random.default_rng(0)
    image = QUICK_IMAGE if options.quick else IMAGE
    x = random.normal(size=(options.batch_size, image, image, 3)).astype(np.float32)
    y = random.integers(CLASSES, size=options.batch_size).astype(np.int32)
    sizes = QUICK_SIZES[name] if options.quick else {}
    model = build(name, Dataset(x, y, x, y, CLASSES), **sizes)
    return model, (jnp.asarray(x), jnp.asarray(y))


def _parameter_bytes(model: nn.Module, batch: Batch) -> int:
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), batch[0])
    return sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(variables["params"]))


def _measure(
    name: str, model: nn.Module, batch: Batch, optimizer: str, options: StepCostOptions
) -> list[dict[str, Any]]:
    """Returns the runs of one network and optimizer."""
    steps = contestants(model, batch, optimizer, options.methods, not options.quick)
    if options.peers and name == "mlp":
        steps += peers.contestants(model, batch, optimizer)
    seconds = in_turns(steps, options.rounds)
    return [
        {
            "model": name,
            "optimizer": optimizer,
            "name": one.name,
            "gradients": one.gradients,
            **one.analysis,
            "seconds": seconds[one.name],
        }
        for one in steps
    ]
