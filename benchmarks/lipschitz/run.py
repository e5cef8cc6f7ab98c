"""Trains and measures all methods, prints the table and writes the results."""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.common import progress, results
from benchmarks.common.cli import UsageError
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.data.preparation import load
from benchmarks.common.table import Table
from benchmarks.lipschitz import measuring, plots
from benchmarks.lipschitz.methods import LipschitzMethod
from benchmarks.lipschitz.network import network
from benchmarks.lipschitz.options import LipschitzOptions, parse_methods
from benchmarks.lipschitz.summary import choice, chosen_strengths, claim, summarize
from benchmarks.lipschitz.table import table
from benchmarks.lipschitz.training import TrainingState, compiled, rounds
from flatreg import lipschitz

WIDTH = 200  # of the table where the output does not go to a terminal


def run(
    options: LipschitzOptions,
    folder: pathlib.Path,
    *,
    data_dir: str | None = None,
    command: str = "",
    console: Console | None = None,
) -> results.Results:
    """Compares the methods, prints the table and writes the results.

    Args:
      options: what to train and to measure.
      folder: where the results go. Nothing in it is deleted.
      data_dir: a folder with local copies of the data sets.
      command: the command line that is recorded.
      console: where progress and the table are printed.

    Returns:
      The results as they are written to the folder, with one run per method and seed. The entry
      `answer` is there when all runs are finished.
    """
    methods = parse_methods(options.methods, options.model, options.sweep)
    data = load(options.data, data_dir, options.train_size, options.evaluate_on)
    if data.x_train.dtype.kind == "i":
        raise UsageError(
            "--data text needs a transformer, which cannot be bounded. Give other data."
        )
    data.check_training(options.batch_size)
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    record = results.fresh(
        command,
        options._asdict(),
        methods=[method.label for method in methods],
        dataset=data.description(),
        measurement=measuring.SETTINGS | {"curve_radii": options.curve_radii.tolist()},
    )
    results.start(folder, record, resume=False)
    for of_seed in _runs(options, methods, data, console):
        record["runs"] += of_seed
        results.save(folder, record)
    summaries = summarize(record["runs"], methods)
    record["answer"] = (
        chosen_strengths(choice(summaries)) if options.sweep else claim(record["runs"], summaries)
    )
    results.save(folder, record)
    report(folder, record).print(console)
    written = ", ".join([*results.FILES, "table.md", plots.FILE])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)
    return record


def report(folder: pathlib.Path, record: results.Results) -> Table:
    """Writes the table and the figure of finished results to the folder; returns the table."""
    configuration = record["configuration"]
    options = LipschitzOptions(**configuration | {"radii": tuple(configuration["radii"])})
    methods = parse_methods(",".join(record["methods"]), options.model, sweep=False)
    summaries = summarize(record["runs"], methods)
    found = table(summaries, options, record["dataset"], record["answer"])
    text = found.markdown(commands=[record["command"]])
    (folder / "table.md").write_text(text, encoding="utf-8")
    plots.draw(folder, summaries, options)
    return found


def _runs(
    options: LipschitzOptions, methods: Sequence[LipschitzMethod], data: Dataset, console: Console
) -> Iterator[list[dict[str, Any]]]:
    """Yields the finished runs of all methods, seed by seed."""
    net = network(options.model, data)
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    measure = measuring.measurer(
        net.logits,
        net.transparent_logits,
        data.x_test,
        data.y_test,
        radii=options.radii,
        curve_radii=options.curve_radii,
        noise=options.noise,
    )
    with console.status("Compiling"):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        operators = lipschitz.linear_maps(net.transparent_logits, shapes, x[:1])
        programs = {
            method.label: compiled(method.parts(operators), net.init, net.logits, options, x, y)
            for method in methods
        }
    with progress.reporting(console, options.seeds, options.seeds * options.epochs) as reporter:
        for seed in range(options.seeds):
            states: dict[str, TrainingState] = {}
            epochs: dict[str, list[dict[str, float]]] = {label: [] for label in programs}
            for one in rounds(programs, states, seed, options, x, y):
                for label in programs:
                    epochs[label].append(
                        {"seconds_per_step": one.seconds[label], "train_loss": one.losses[label]}
                    )
                reporter.working(f"{len(programs)} methods", 1)
            yield [
                {
                    "method": label,
                    "seed": seed,
                    "epochs": epochs[label],
                    "measured": measure(programs[label].weights(states[label])),
                }
                for label in programs
            ]
            reporter.finished(f"seed {seed}, {len(programs)} methods")
