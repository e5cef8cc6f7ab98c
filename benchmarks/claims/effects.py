"""Quantities that compare two methods over the same seeds: accuracy gained, flatness gained."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.common import measuring
from benchmarks.common.statistics.confidence import (
    Confidence,
    diverged_as_worst,
    of_correctness,
    of_seeds,
)
from benchmarks.common.statistics.correctness import unpacked
from benchmarks.common.statistics.times import time_ratio

NODES = 400  # quantiles that stand for a normal distribution
ACCURACY, NOISE_ACCURACY = "test_accuracy", "noise_accuracy"


class Runs(NamedTuple):
    """The runs of one comparison, or of several with different names for their methods.

    Attributes:
      records: the record of each run by method and seed.
      examples: the number of examples that they were evaluated on.
    """

    records: dict[tuple[str, int], dict[str, Any]]
    examples: int

    def of(self, method: str, name: str) -> np.ndarray:
        """Returns a measured quantity of a method, one value per seed; NaN for a diverged run."""
        measured = [record["measured"] or {} for record in self.each(method)]
        return np.array([np.nan if m.get(name) is None else m[name] for m in measured])

    def correctness(self, method: str) -> np.ndarray | None:
        """Returns which examples were classified correctly, of shape (seeds, examples).

        The row of a diverged run is False throughout. None if the runs were recorded without it.
        """
        rows = [
            unpacked(record["correct"], self.examples)
            if record.get("correct")
            else np.zeros(self.examples, bool)
            if record["measured"] is None
            else None
            for record in self.each(method)
        ]
        return None if any(row is None for row in rows) else np.stack(rows)  # type: ignore[arg-type]

    def along(self, method: str) -> list[list[dict[str, float]]]:
        """Returns what was measured during training, one list of measurements per seed.

        The list of a run that diverged is empty.
        """
        return [
            [epoch["curvature"] for epoch in record["curve"] if "curvature" in epoch]
            if record["measured"]
            else []
            for record in self.each(method)
        ]

    def renamed(self, suffix: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Returns the records with a suffix appended to each method's name.

        The suffix keeps them apart from records of the same method with other options.
        """
        return {(method + suffix, seed): one for (method, seed), one in self.records.items()}

    def time_ratio(self, method: str, plain: str) -> float:
        """Returns the time per step divided by that of the plain method."""
        return time_ratio(self.each(method), self.each(plain))

    def each(self, method: str) -> list[dict[str, Any]]:
        """Returns the records of a method in the order of the seeds."""
        return [record for (label, _), record in sorted(self.records.items()) if label == method]


def gain(runs: Runs, better: str, worse: str, name: str = ACCURACY) -> Confidence:
    """Returns the difference of two methods' accuracies in percentage points.

    A diverged run has an accuracy of zero. The interval covers other seeds and other test examples.
    Without per-example correctness, the variance due to the test examples is replaced by an upper
    bound: the sum of both error rates, divided by the number of examples. It is attained if the
    methods never fail on the same example.

    Args:
      runs: the runs of both methods.
      better: the method that is predicted to be more accurate.
      worse: the other method.
      name: `ACCURACY` or `NOISE_ACCURACY`.
    """
    if name == ACCURACY:
        correct, baseline = runs.correctness(better), runs.correctness(worse)
        if correct is not None and baseline is not None:
            return of_correctness(correct, baseline).scaled(100)
    first, second = diverged_as_worst(runs.of(better, name), runs.of(worse, name), worst=0)
    examples = runs.examples
    if name == NOISE_ACCURACY:
        examples = min(examples, measuring.CURVATURE_EXAMPLES)
    spread = math.sqrt((2 - first.mean() - second.mean()) / examples)
    shifts = spread * stats.norm.ppf((np.arange(NODES) + 0.5) / NODES)
    return of_seeds(first - second)._replace(shifts=shifts, point=0.01).scaled(100)


def flatter(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns log₂ of the ratio of a measure of sharpness, one per seed.

    It is 1 where the measure is half as large with the method `flat` as with `sharp`. A measure
    that float32 rounds to zero counts as the smallest positive one of both methods. A diverged run
    counts as the worst outcome.
    """
    values = {method: runs.of(method, name) for method in (sharp, flat)}
    positive = [one[one > 0] for one in values.values()]
    floor = min((float(one.min()) for one in positive if len(one)), default=1.0)
    ratio = np.log2(np.maximum(values[sharp], floor) / np.maximum(values[flat], floor))
    return diverged_as_worst(ratio)[0]


def flatter_during_training(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns the mean of that log₂ ratio over the measurements during training, one per seed."""
    ratios = [
        np.mean([np.log2(b[name] / a[name]) for a, b in zip(*pair, strict=True)])
        if all(pair)
        else np.nan
        for pair in zip(runs.along(flat), runs.along(sharp), strict=True)
    ]
    return diverged_as_worst(ratios)[0]


def flatter_at_same_loss(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns the mean of that log₂ ratio at equal training loss, one per seed.

    The mean is over the training losses that both runs reached, evenly spaced on a log scale, with
    linear interpolation between the measurements. NaN if there is no such loss. A diverged run
    counts as the worst outcome.
    """
    found, diverged = [], []
    for pair in zip(runs.along(flat), runs.along(sharp), strict=True):
        diverged.append(not all(pair))
        if diverged[-1]:
            found.append(np.nan)
            continue
        curves = [np.log2(np.array([[m["loss"], m[name]] for m in run])) for run in pair]
        curves = [curve[curve[:, 0].argsort()] for curve in curves]
        low, high = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
        losses = np.linspace(low, high, 20)
        of_flat, of_sharp = (np.interp(losses, curve[:, 0], curve[:, 1]) for curve in curves)
        found.append(np.mean(of_sharp - of_flat) if low < high else np.nan)
    return np.where(diverged, diverged_as_worst(found)[0], found)


def correlation(settings: Sequence[float], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns Spearman's rank correlation with a setting, one per seed.

    Args:
      settings: the values of the setting, for example learning rates.
      rows: a measured quantity for each of these settings, one value per seed.
    """
    return np.array(
        [stats.spearmanr(settings, of_seed).statistic for of_seed in np.transpose(rows)]
    )


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Returns the rank correlation of x and y that is left when a third quantity is known.

    It is the correlation of the residuals of the ranks after linear regression on the ranks of
    `given`. It is 0 if the ranks of `given` determine those of x or y, so that nothing is left.
    """
    first, second, third = (stats.rankdata(one) - (len(x) + 1) / 2 for one in (x, y, given))
    first, second = (one - (one @ third) / (third @ third) * third for one in (first, second))
    size = math.sqrt((first @ first) * (second @ second))
    return float(first @ second / size) if size > 1e-9 else 0.0


def more_accurate(better: str, worse: str, name: str = "accuracy") -> str:
    """Describes a difference of two accuracies in percentage points."""
    return f"{name} of {better} minus {name} of {worse}, points"


def log_ratio(name: str, larger: str, smaller: str) -> str:
    """Describes the log₂ of a ratio."""
    return f"log₂({name} of {larger} / {name} of {smaller})"
