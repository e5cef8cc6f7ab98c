"""Quantities that compare two methods over the same seeds: accuracy gained, flatness gained."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

ACCURACY = "test_accuracy"
MARGIN = 0.5  # percentage points within which two accuracies count as equal


class Runs(NamedTuple):
    """The runs of one comparison, or of several with different names for their methods.

    Attributes:
      records: the record of each run by method and seed.
    """

    records: dict[tuple[str, int], dict[str, Any]]

    def of(self, method: str, name: str) -> np.ndarray:
        """Returns a measured quantity of a method, one value per seed; NaN for a diverged run."""
        measured = [record["measured"] or {} for record in self._of(method)]
        return np.array([np.nan if m.get(name) is None else m[name] for m in measured])

    def along(self, method: str) -> list[list[dict[str, float]]]:
        """Returns what was measured during training, one list of measurements per seed."""
        return [
            [epoch["curvature"] for epoch in record["curve"] if "curvature" in epoch]
            for record in self._of(method)
        ]

    def renamed(self, suffix: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Returns the records with a suffix appended to each method's name.

        The suffix keeps them apart from records of the same method with other options.
        """
        return {(method + suffix, seed): one for (method, seed), one in self.records.items()}

    def time_ratio(self, method: str, plain: str) -> float:
        """Returns the time per step divided by that of the plain method.

        Each time is that of the fastest epoch, which other work on the machine slows down least.
        """
        fastest, reference = (
            min(record["seconds_per_step"] for record in self._of(label))
            for label in (method, plain)
        )
        return float(fastest / reference)

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [record for (label, _), record in sorted(self.records.items()) if label == method]


def gain(runs: Runs, better: str, worse: str, name: str = ACCURACY) -> np.ndarray:
    """Returns the difference of two methods' accuracies in percentage points, one per seed."""
    return points(runs.of(better, name), runs.of(worse, name))


def points(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Returns the difference of two fractions in percentage points."""
    difference: np.ndarray = 100 * (better - worse)
    return difference


def flatter(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns log₂ of the ratio of a measure of sharpness, one per seed.

    It is 1 where the measure is half as large with the method `flat` as with `sharp`, and infinite
    where it is zero with `flat`, as a λ_max that float32 rounds to zero.
    """
    with np.errstate(divide="ignore"):
        ratio: np.ndarray = np.log2(runs.of(sharp, name) / runs.of(flat, name))
    return ratio


def flatter_during_training(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns the mean of that log₂ ratio over the measurements during training, one per seed."""
    return np.array(
        [
            np.mean([np.log2(b[name] / a[name]) for a, b in zip(*pair, strict=True)])
            for pair in zip(runs.along(flat), runs.along(sharp), strict=True)
        ]
    )


def flatter_at_same_loss(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """Returns the mean of that log₂ ratio at equal training loss, one per seed.

    The mean is over the training losses that both runs reached, evenly spaced on a log scale, with
    linear interpolation between the measurements. NaN if there is no such loss.
    """
    found = []
    for pair in zip(runs.along(flat), runs.along(sharp), strict=True):
        curves = [np.log2(np.array([[m["loss"], m[name]] for m in run])) for run in pair]
        curves = [curve[curve[:, 0].argsort()] for curve in curves]
        low, high = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
        losses = np.linspace(low, high, 20)
        of_flat, of_sharp = (np.interp(losses, curve[:, 0], curve[:, 1]) for curve in curves)
        found.append(np.mean(of_sharp - of_flat) if low < high else np.nan)
    return np.array(found)


def correlation(settings: Sequence[float], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns Spearman's rank correlation with a setting, one per seed.

    Args:
      settings: the values of the setting, for example learning rates.
      rows: a measured quantity for each of these settings, one value per seed.
    """
    return np.array(
        [stats.spearmanr(settings, of_seed).statistic for of_seed in np.transpose(rows)]
    )


def more_accurate(better: str, worse: str, name: str = "accuracy") -> str:
    """Describes a difference of two accuracies in percentage points."""
    return f"{name} of {better} minus {name} of {worse}, points"


def log_ratio(name: str, larger: str, smaller: str) -> str:
    """Describes the log₂ of a ratio."""
    return f"log₂({name} of {larger} / {name} of {smaller})"
