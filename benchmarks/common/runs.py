"""Trains and measures the runs that are missing; a run is one method from one seed."""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from rich.console import Console

from benchmarks.common import data as _data
from benchmarks.common import measuring as _measure
from benchmarks.common import progress as _progress
from benchmarks.common import saved_models as _saved_models
from benchmarks.common import training as _train
from benchmarks.common.methods import Method
from benchmarks.common.options import Options

ON_THE_WAY = 2048  # test examples of the curves; in the end all of them count
# Programs kept compiled: on a CPU each of a ResNet's takes 2,000 of a process's 65,530 memory maps.
AT_ONCE = 16
ALONG = 10  # times that `--flatness along` measures in the course of a training
Record = dict[str, Any]  # of one finished run, as results.json keeps it


class Bench(NamedTuple):
    """What all runs share."""

    model: nn.Module
    data: _data.Dataset
    options: Options
    models: pathlib.Path | None  # where trained networks are kept


def finish(
    bench: Bench, missing: Sequence[tuple[Method, int]], console: Console
) -> Iterator[Record]:
    """Yields the record of each missing (method, seed) as soon as it is finished."""
    model, data, options, _ = bench
    clean_labels = data.y_train
    # The data stay on the device, where the training step gathers its batches.
    data = data._replace(**{name: jnp.asarray(getattr(data, name)) for name in _data.ARRAYS})
    work = sum(
        method.cost * _train.training_steps(method, options, len(data.x_train))
        for method, _ in missing
    )
    with _progress.reporting(console, len(missing), work) as reporter:
        for group in _groups(missing):
            programs: dict[str, _train.Program] = {}
            for method, _ in group:
                if method.label not in programs:
                    reporter.working(f"compiling {method.label}", 0)
                    programs[method.label] = _train.build(
                        method, model, options, data.x_train, data.y_train
                    )
            for method, seed in group:
                labels = _data.with_label_noise(
                    clean_labels, data.num_classes, options.label_noise, seed
                )
                noisy = bench._replace(data=data._replace(y_train=jnp.asarray(labels)))
                record = _record(noisy, method, programs[method.label], seed, reporter.working)
                yield record
                reporter.finished(_outcome(record))  # it is on disk by now


def _groups(missing: Sequence[tuple[Method, int]]) -> Iterator[list[tuple[Method, int]]]:
    """The runs of so many methods at a time as may stay compiled together."""
    labels = list(dict.fromkeys(method.label for method, _ in missing))
    for first in range(0, len(labels), AT_ONCE):
        group = labels[first : first + AT_ONCE]
        yield [(method, seed) for method, seed in missing if method.label in group]


def _record(
    bench: Bench,
    method: Method,
    program: _train.Program,
    seed: int,
    working: Callable[[str, float], None],
) -> Record:
    """Trains a method from a seed and measures what it ended with, unless it diverged."""
    model, data, options, models = bench
    curve: list[dict[str, Any]] = []
    steps = 0
    for epoch in _train.epochs(program, seed, data.x_train, data.y_train):
        variables = epoch.state.variables
        test = _measure.evaluate(
            model, variables, data.x_test[:ON_THE_WAY], data.y_test[:ON_THE_WAY]
        )
        steps += epoch.steps
        curve.append(
            {
                "step": steps,
                "gradients": steps * method.cost,
                "seconds_a_step": epoch.seconds / epoch.steps,
                "train_loss": epoch.train_loss,
                "test_loss": test.loss,
                "test_accuracy": test.accuracy,
            }
        )
        diverged = not math.isfinite(epoch.train_loss + test.loss)
        if options.flatness == "along" and len(curve) % max(1, options.epochs // ALONG) == 0:
            curve[-1] |= {"curvature": _measure.curvature(model, variables, data, seed)}
        ahead = program.steps - steps if diverged else 0
        working(f"{method.label}, seed {seed}", (epoch.steps + ahead) * method.cost)
        if diverged:
            break
    record = {"method": method.label, "seed": seed, "diverged": diverged, "curve": curve}
    if diverged:
        return record | {"measured": None}
    measured = _measure.measure(
        model,
        variables,
        data,
        options.label_noise,
        seed,
        flatness=options.flatness,
    )
    if models is not None:
        _saved_models.save(models, method.label, seed, variables)
    return record | {"measured": measured._asdict()}


def _outcome(record: Record) -> str:
    """One line on a finished run."""
    run = f"{record['method']}, seed {record['seed']}"
    if record["diverged"]:
        return f"{run}: diverged within {record['curve'][-1]['step']} steps"
    measured = record["measured"]
    flatness = measured["lambda_max"]
    flat = f", λ_max {flatness:.3g}" if math.isfinite(flatness) else ""
    return f"{run}: accuracy {measured['test_accuracy']:.2%}{flat}"
