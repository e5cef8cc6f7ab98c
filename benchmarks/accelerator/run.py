"""Times the steps of both networks until the time is used up, and trains on CIFAR-10."""

import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.common import options as comparison
from benchmarks.common import results
from benchmarks.common.models.decoder import Decoder
from benchmarks.common.models.resnet import ResNet
from benchmarks.common.table import Table
from benchmarks.compare import run as compare
from benchmarks.step_cost.contestants import makers
from benchmarks.step_cost.timing import GRADIENT, OPTAX_SAM, in_turns, ratio

WIDTH = 120  # of the table where the output does not go to a terminal
OPTIMIZER = "adamw"
TRAINING = {"epochs": 2, "seeds": 1, "methods": "sgd,sam:rho=0.05", "flatness": "no"}
HEADINGS = (
    "step",
    "gradients",
    "milliseconds",
    "time / one\ngradient",
    "time / optax.\ncontrib.sam",
    "temporary\nMB",
    "compilation,\nseconds",
)


class AcceleratorOptions(NamedTuple):
    """What to measure.

    Attributes:
      methods: methods as `benchmarks.compare` names them, or names without settings.
      minutes: when to stop with further methods.
      rounds: how often each step is timed.
      data_dir: a folder that contains CIFAR-10, or None for no training.
      quick: whether the networks are tiny.
    """

    methods: Sequence[str]
    minutes: float
    rounds: int
    data_dir: str | None = None
    quick: bool = False


def run(options: AcceleratorOptions, folder: pathlib.Path, *, command: str = "") -> results.Results:
    """Measures the methods one after another, and writes each when it is finished.

    The arguments are those of `benchmarks.step_cost.run.run`. The results that it returns and
    writes to the folder have one run per network and step.
    """
    end = time.monotonic() + 60 * options.minutes
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    record = results.fresh(command, options._asdict(), left_out=[])
    results.start(folder, record, resume=False)
    if options.data_dir is not None:
        trained = comparison.complete(
            data="cifar10", model="resnet18", dtype="bfloat16", augment=True, **TRAINING
        )
        job = compare.Job(trained, folder / "cifar10", options.data_dir)
        compare.run(job, console)
    for name, (model, batch) in _problems(options.quick).items():
        steps = makers(model, batch, OPTIMIZER, options.methods, not options.quick)
        references = [steps.pop(GRADIENT)(), steps.pop(OPTAX_SAM)()]
        for label, make in steps.items():
            if time.monotonic() > end:
                record["left_out"].append(f"{name}, {label}")
                continue
            with console.status(f"{name}, {label}"):
                step = make()
                seconds = in_turns([*references, step], options.rounds)
            record["runs"].append(
                {
                    "network": name,
                    "name": label,
                    "gradients": step.gradients,
                    **step.analysis,
                    "seconds": seconds[label],
                    "gradient_seconds": seconds[GRADIENT],
                    "optax_sam_seconds": seconds[OPTAX_SAM],
                }
            )
            results.save(folder, record)
    report(folder, record).print(console)
    console.print(f"Written to {folder}", highlight=False)
    return record


def report(folder: pathlib.Path, record: results.Results) -> Table:
    """Writes the table of finished results to the folder and returns it."""
    found = table(record)
    found.write(folder, record["command"])
    return found


def table(record: results.Results) -> Table:
    """Returns one row per network and step."""
    rows = []
    for run in record["runs"]:
        times = [run["gradient_seconds"], run["optax_sam_seconds"]]
        rows.append(
            [
                f"{run['network']}, {run['name']}",
                f"{run['gradients']:g}",
                f"{1e3 * np.median(run['seconds']):.2f}",
                *(ratio(run["seconds"], other).text(".2f") for other in times),
                f"{run['temporary_bytes'] / 1e6:.0f}",
                f"{run['trace_seconds'] + run['compile_seconds']:.1f}",
            ]
        )
    left_out = "; ".join(record["left_out"])
    caption = "Times are medians over rounds in which the steps take turns, with 95% intervals." + (
        f" Left out, because the time was used up: {left_out}." if left_out else ""
    )
    device = record["environment"]["device"]
    return Table(f"Step times on {device}, bfloat16, {OPTIMIZER}", HEADINGS, rows, caption)


def _problems(quick: bool) -> dict[str, tuple[Any, tuple[jax.Array, jax.Array]]]:
    """Returns each network with a batch of random data; the cost of a step depends on neither."""
    random, dtype = np.random.default_rng(0), jnp.bfloat16
    count, image, length, tokens = (4, 8, 16, 64) if quick else (128, 32, 1024, 32768)
    widths = (4, 8) if quick else (64, 128, 256, 512)
    resnet = ResNet(10, widths, blocks=1 if quick else 2, dtype=dtype)
    width, depth, heads = (16, 2, 2) if quick else (640, 12, 10)
    decoder = Decoder(tokens, width, depth, heads, dtype)
    images = jnp.asarray(random.normal(size=(count, image, image, 3)), dtype)
    labels = jnp.asarray(random.integers(10, size=count), jnp.int32)
    text = jnp.asarray(random.integers(tokens, size=(2 if quick else 8, length)), jnp.int32)
    return {"resnet18": (resnet, (images, labels)), "transformer-0.1b": (decoder, (text, text))}
