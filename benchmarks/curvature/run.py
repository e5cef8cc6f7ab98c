"""Trains the network, runs all estimates in turns, prints the table and writes the results."""

import os
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from rich.console import Console

from benchmarks.common import results, saved_models
from benchmarks.common.data.preparation import load
from benchmarks.common.models.build import build
from benchmarks.common.table import Table
from benchmarks.curvature import measuring, peers
from benchmarks.curvature.table import table
from flatreg import measures

PAUSE = 0.3  # seconds between runs, in which the threads of the last framework stop spinning
WIDTH = 120  # of the table where the output does not go to a terminal

Estimates = dict[str, Callable[[], dict[str, Any]]]  # by name


class CurvatureOptions(NamedTuple):
    """What to train and to measure.

    Attributes:
      data: the name of a data set, or the path of an `.npz` file.
      train_size: the number of training examples, or None for all.
      epochs: the number of epochs of training.
      examples: the number of test examples for the loss, or None for all.
      batch_size: the number of examples that are in memory at a time.
      eigenvalues: the number of eigenvalues.
      probes: the number of random vectors for the trace.
      repeats: the number of runs of each estimate.
      peers: whether to measure PyHessian and curvlinops too.
    """

    data: str
    train_size: int | None
    epochs: int
    examples: int | None
    batch_size: int
    eigenvalues: int
    probes: int
    repeats: int
    peers: bool = False


def run(
    options: CurvatureOptions,
    folder: pathlib.Path,
    *,
    data_dir: str | None = None,
    command: str = "",
) -> results.Results:
    """Measures the estimates of curvature.

    Args:
      options: what to train and to measure.
      folder: where the results and the trained network go.
      data_dir: a folder with local copies of the data sets.
      command: the command line that is recorded.

    Returns:
      The results as they are written to the folder: one run per estimate and repetition.
    """
    if options.peers:
        peers.check_installed()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    data = load(options.data, data_dir, options.train_size, "test")
    x, y = data.x_test[: options.examples], data.y_test[: options.examples]
    threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    record: results.Results = {
        "command": command,
        "revision": results.revision(),
        "configuration": options._asdict(),
        "dataset": data.description(),
        "environment": results.environment()
        | {"threads": threads}
        | (peers.versions() if options.peers else {}),
        "runs": [],
    }
    results.start(folder, record, resume=False)
    model = build("mlp", data)
    with console.status("Training"):
        params = measuring.trained(model, data, options.data, options.epochs)
    saved_models.save(folder, "sgd", 0, {"params": params})
    record["weights"] = sum(leaf.size for leaf in jax.tree.leaves(params))

    def loss_of(examples: int) -> measures.LossFn:
        batch_loss = partial(measuring.loss, model)
        some = x[:examples], y[:examples]
        return measures.dataset_loss(batch_loss, some, batch_size=options.batch_size)

    # By default, GPUs round the factors of a float32 product to TF32.
    with jax.default_matmul_precision("highest"):
        plan = measuring.plan(options.eigenvalues, options.probes)
        with console.status("Compiling"):
            ready = {
                name: measuring.compiled(estimate, loss_of(len(x)), params)
                for name, estimate in plan.items()
            }
            top = next(iter(plan.values()))
            sizes = sorted({min(m * options.batch_size, len(x)) for m in (1, 2, 4, len(x))})
            memory = {
                str(n): measuring.compiled(top, loss_of(n), params).temporary_bytes for n in sizes
            }
        with console.status("Reference: ARPACK in float64, and a long run for the trace"):
            reference = measuring.reference(
                loss_of(len(x)), params, options.eigenvalues, 8 * options.probes
            )
        estimates: Estimates = {name: one.run for name, one in ready.items()}
        if options.peers:
            estimates |= peers.estimates(
                params, x, y, options.eigenvalues, options.probes, options.batch_size, threads
            )
        record["runs"] = _in_turns(estimates, options.repeats, console)
    record |= {
        "reference": reference,
        "temporary_bytes_over_examples": memory,
        "compiled": {
            name: {
                "compile_seconds": one.compile_seconds,
                "temporary_bytes": one.temporary_bytes,
            }
            for name, one in ready.items()
        },
    }
    results.save(folder, record)
    report(folder, record).print(console)
    files = [name for name in results.FILES if (folder / name).exists()]
    written = ", ".join([*files, "table.md", "models/"])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)
    return record


def report(folder: pathlib.Path, record: results.Results) -> Table:
    """Writes the table of finished results to the folder and returns it."""
    found = table(record)
    found.write(folder, record["command"])
    return found


def _in_turns(estimates: Estimates, repeats: int, console: Console) -> list[dict[str, Any]]:
    """Runs every estimate once, then every estimate again."""
    runs = []
    for repeat in range(repeats):
        for name, estimate in estimates.items():
            time.sleep(PAUSE)
            with console.status(f"{name}, run {repeat + 1} of {repeats}"):
                begin = time.perf_counter()
                found = estimate()
                seconds = time.perf_counter() - begin
            runs.append({"row": name, "seconds": seconds, **found})
            console.print(f"[dim]{name}: {seconds:.2f} s[/dim]", highlight=False)
    return runs
