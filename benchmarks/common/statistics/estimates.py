"""Means and medians with their uncertainty, and which methods share the best value.

Intervals and standard errors come from `scipy.stats`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Estimate(NamedTuple):
    """A mean over independent values, usually one value per seed.

    Attributes:
      mean: the arithmetic mean; NaN without values.
      standard_error: the standard error of the mean, from the sample variance (`ddof=1`); NaN
        with fewer than two values.
      low: the lower end of Student's t interval; NaN with fewer than two values.
      high: the upper end of the interval.
      count: the number of values.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # it hides tuple.count

    def scaled(self, factor: float) -> "Estimate":
        """Returns the estimate of `factor` times the quantity, for a positive factor."""
        mean, error, low, high = (factor * value for value in self[:4])
        return Estimate(mean, error, low, high, self.count)

    def text(self, form: str, error_form: str | None = None) -> str:
        """Returns the mean, and behind ± its standard error if it is known; `-` if not finite.

        Args:
          form: the format of the mean, for example `.2f`.
          error_form: the format of the standard error; None for that of the mean.
        """
        mean = written(self.mean, form)
        if not math.isfinite(self.standard_error):
            return mean
        return f"{mean} ± {written(self.standard_error, error_form or form)}"


class Median(NamedTuple):
    """A median with the interval of order statistics that covers it.

    Attributes:
      median: the sample median; NaN without values.
      low: the lower end of the interval; NaN if there are too few values for the confidence
        (fewer than six for 95%).
      high: the upper end of the interval.
      count: the number of values.
    """

    median: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # it hides tuple.count

    def scaled(self, factor: float) -> "Median":
        """Returns the median of `factor` times the quantity, for a positive factor."""
        return Median(factor * self.median, factor * self.low, factor * self.high, self.count)

    def text(self, form: str) -> str:
        """Returns `1.02 (1.01 to 1.04)`, every number in the format `form`."""
        return (
            f"{written(self.median, form)} "
            f"({written(self.low, form)} to {written(self.high, form)})"
        )


def estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Returns the mean of the values with its standard error and Student's t interval.

    NaN or infinite values make the result NaN or infinite: drop them by `finite` where that is
    meant.
    """
    sample = np.asarray(values, float).ravel()
    if len(sample) < 2:
        mean = float(sample[0]) if len(sample) else math.nan
        return Estimate(mean, math.nan, math.nan, math.nan, len(sample))
    mean, error = float(sample.mean()), float(stats.sem(sample))
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1)) * error
    return Estimate(mean, error, mean - half, mean + half, len(sample))


def median(values: ArrayLike, confidence: float = 0.95) -> Median:
    """Returns the median of the values with its distribution-free interval."""
    sample = np.asarray(values, float).ravel()
    if not len(sample):
        return Median(math.nan, math.nan, math.nan, 0)
    interval = stats.quantile_test(sample, p=0.5).confidence_interval(confidence)
    return Median(float(np.median(sample)), float(interval.low), float(interval.high), len(sample))


def finite(values: ArrayLike) -> np.ndarray:
    """Returns the finite ones of the values."""
    sample = np.asarray(values, float)
    return sample[np.isfinite(sample)]


def number(value: float | None) -> float:
    """Returns a number as it was stored in JSON, where null stands for a number not finite."""
    return math.nan if value is None else float(value)


def written(value: float, form: str) -> str:
    """Returns the number in the format `form`, or `-` if it is not finite."""
    return format(value, form) if math.isfinite(value) else "-"


def best(values: Mapping[str, Mapping[int, float]], sign: int = 1) -> list[str]:
    """Returns the labels with the best mean, and those that cannot be told apart from it.

    A label is as good as the best one if the mean of their differences, paired by seed, is at most
    the standard error of that mean.

    Args:
      values: the values of each label by seed. Labels without values or with a mean that is not
        finite are never best.
      sign: 1 if large values are good, -1 if small ones are.

    Returns:
      The labels, in the order of `values`.
    """
    means = {label: np.mean(list(of_seed.values())) for label, of_seed in values.items() if of_seed}
    means = {label: sign * mean for label, mean in means.items() if math.isfinite(mean)}
    if not means:
        return []
    winner = max(means, key=lambda label: means[label])

    def as_good(label: str) -> bool:
        seeds: Sequence[int] = sorted(values[winner].keys() & values[label].keys())
        behind = estimate([sign * (values[winner][s] - values[label][s]) for s in seeds])
        return behind.mean <= behind.standard_error

    return [label for label in means if label == winner or as_good(label)]
