"""A cell of the frontier: one method at one budget, tuned and then trained from the test seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import measuring
from benchmarks.common.statistics.correctness import packed
from benchmarks.frontier.options import TUNING_SEED, common_ranges
from benchmarks.frontier.records import Key, Record, score
from benchmarks.frontier.trials.bed import Bed, Split
from benchmarks.frontier.trials.contender import affordable_steps, gradients
from benchmarks.frontier.trials.contenders import KNOWN
from benchmarks.frontier.trials.evaluating import Predictions, predict
from benchmarks.frontier.trials.training import Program, Recipe, Trained, build
from benchmarks.frontier.tuning import Point, Range, Score, search

TIMED_STEPS, TIMED_ROUNDS = 200, 5  # of each method


class Cell(NamedTuple):
    """A method at a budget.

    Attributes:
      method: the name of the method.
      budget: the budget in units of the reference number of gradients.
    """

    method: str
    budget: float


class Worker:
    """Trains the cells of a bed; it compiles each method once."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._recipe = recipe_of(bed)
        self._programs: dict[str, Program] = {}

    def finish(
        self, cell: Cell, known: Mapping[Key, Record], save: Callable[[Record], None]
    ) -> None:
        """Makes the records of a cell that are missing.

        Args:
          cell: the method and the budget.
          known: the finished records; they are not made again.
          save: is called with each record as soon as it is finished.
        """
        found = dict(known)

        def record_of(stage: str, number: int, seed: int, point: Point) -> Record:
            key = Key(*cell, stage, number)
            if key not in found:
                found[key] = self._make(key, seed, point)
                save(found[key])
            return found[key]

        def evaluate(number: int, point: Point) -> Score:
            # All trials have the same seed: they differ in their hyperparameters alone.
            return score(record_of("tuning", number, TUNING_SEED, point))

        options = self._bed.options
        space = ranges(cell.method, options.optimizer)
        best = search(evaluate, space, options.trials, options.more, seed=TUNING_SEED)
        for seed in range(options.seeds):
            record_of("test", seed, seed, best.point)

    def _make(self, key: Key, seed: int, point: Point) -> Record:
        bed, contender = self._bed, KNOWN[key.method]
        split = bed.tuning if key.stage == "tuning" else bed.test
        labels = split.labels(bed.num_classes, bed.options.label_noise, seed)
        if key.method not in self._programs:
            self._programs[key.method] = build(contender, self._recipe, split.x, labels)
        steps = affordable_steps(contender, key.budget * bed.reference)
        examples = len(split.clean_labels)
        trained = self._programs[key.method](point, steps, seed, split.x, labels, examples)
        predictions = predict(bed.model, trained.variables, split.x_evaluated, split.y_evaluated)
        diverged = trained.diverged or not math.isfinite(predictions.loss)
        record = key._asdict() | {
            "seed": seed,
            "steps": steps,
            "gradients": gradients(contender, steps),
            "seconds": round(trained.seconds, 3),
            "diverged": diverged,
            "hyperparameters": point,
            "accuracy": predictions.accuracy,
            "loss": predictions.loss,
        }
        if key.stage == "test":
            train = split.x[:examples], labels[:examples]
            record |= _measured(bed, split, train, trained, predictions, diverged, seed)
        return record


def recipe_of(bed: Bed) -> Recipe:
    """Returns what all trainings on a bed share."""
    options = bed.options
    return Recipe(
        model=bed.model.clone(dtype=jnp.dtype(options.dtype)),
        optimizer=options.optimizer,
        batch_size=options.batch_size,
        warmup=options.warmup,
        augment=options.augment,
        most_steps=bed.most_steps,
    )


def step_seconds(bed: Bed, methods: Sequence[str]) -> dict[str, float]:
    """Returns the seconds of a training step of each method, without compilation.

    The trials of a frontier take hours, in which the load of the machine changes. So the times come
    from one short loop: each method trains for 200 steps, five times in turn with the others. The
    fastest time counts, because other load on the machine can only slow a training down.

    Args:
      bed: the data and the network.
      methods: the names of the methods.
    """
    split, options = bed.test, bed.options
    examples, steps = len(split.clean_labels), min(TIMED_STEPS, bed.most_steps)
    labels = split.labels(bed.num_classes, options.label_noise, TUNING_SEED)
    recipe = recipe_of(bed)
    programs = {name: build(KNOWN[name], recipe, split.x, labels) for name in methods}
    seconds = dict.fromkeys(methods, math.inf)
    for _ in range(TIMED_ROUNDS):
        for name, train in programs.items():
            space = ranges(name, options.optimizer)
            middle = {key: math.sqrt(one.low * one.high) for key, one in space.items()}
            trained = train(middle, steps, TUNING_SEED, split.x, labels, examples)
            seconds[name] = min(seconds[name], trained.seconds / steps)
    return seconds


def ranges(method: str, optimizer: str) -> dict[str, Range]:
    """Returns the ranges in which a method is tuned at first."""
    return common_ranges(optimizer) | dict(KNOWN[method].tuned)


def _measured(
    bed: Bed,
    split: Split,
    train: tuple[jax.Array, jax.Array],
    trained: Trained,
    predictions: Predictions,
    diverged: bool,
    seed: int,
) -> Record:
    """What is recorded of a test run only: correct predictions, calibration and flatness."""
    record: Record = {
        "calibration_error": predictions.calibration_error,
        "measured": None,
        "correct": packed(predictions.correct.ravel()).tolist(),
    }
    if diverged:
        return record
    flatness = bed.options.flatness
    found = measuring.measure(
        bed.model,
        trained.variables,
        train,
        (split.x_evaluated, split.y_evaluated),
        bed.options.label_noise,
        seed,
        flatness=flatness,
    )
    kept = ["train_loss", "train_accuracy", "noise_accuracy", "weight_norm", "gradient_norm"]
    if flatness != "no":
        kept += ["lambda_max", "lambda_max_residual", "trace", "trace_standard_error"]
    return record | {"measured": {name: getattr(found, name) for name in kept}}
