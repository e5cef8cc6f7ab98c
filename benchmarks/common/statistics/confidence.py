"""What is known about a mean over seeds and test examples, as a confidence distribution.

A difference of two methods varies with the seed and with the test examples that happened to be
drawn. With d[s, e] the difference of correctness on example e from seed s, the model is the random
two-way layout d[s, e] = μ + S[s] + E[e] + ε[s, e]. With the mean squares of its analysis of
variance, the mean of d has the variance

    (MS_S + MS_E - MS_ε) / (seeds · examples).

The part of the seeds, MS_S, has few degrees of freedom and follows Student's t distribution. The
other part is bootstrapped over the examples. Resampling five seeds as well would give intervals
that are too short, and resampling rows and columns of d together counts ε three times.

The confidence distribution of μ is that of

    mean(d) + √(MS_S / (seeds · examples)) · t[seeds - 1] + shift,

where a shift is a bootstrap draw of the mean of the example effects, which are shrunken by
√(1 - MS_ε / MS_E), so that ε counts once. Intervals are its quantiles, and p-values its tails.
Without examples, it is exactly Student's t.

References:
  Davison, Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
  Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007.
  Xie, Singh, Confidence distribution, International Statistical Review 2013.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats  # type: ignore[import-untyped]

RESAMPLES = 2000  # bootstrap draws of the test examples
Floats = NDArray[np.float64]


class Confidence(NamedTuple):
    """The confidence distribution of a mean.

    Attributes:
      mean: the estimate; NaN without seeds.
      error: the standard error over the seeds; NaN with fewer than two.
      seeds: the number of seeds.
      shifts: draws of the error that comes from the finite test set; a single 0 if the test set is
        not taken into account.
      point: one percentage point in the unit of the mean, if it is a difference of accuracies; NaN
        for other quantities. Verdicts on differences below a point need more seeds.
    """

    mean: float
    error: float
    seeds: int
    shifts: Floats
    point: float = math.nan

    def below(self, bound: float) -> float:
        """Returns the confidence that the mean is below a bound: the p-value of `mean > bound`."""
        if not math.isfinite(self.error):
            return math.nan
        gaps = bound - self.mean - self.shifts
        if self.error == 0:
            return float(np.heaviside(gaps, 0.5).mean())
        return float(special.stdtr(self.seeds - 1, gaps / self.error).mean())

    def above(self, bound: float) -> float:
        """Returns the confidence that the mean is above a bound: the p-value of `mean < bound`."""
        if not math.isfinite(self.error):
            return math.nan
        gaps = bound - self.mean - self.shifts
        if self.error == 0:
            return float(np.heaviside(-gaps, 0.5).mean())
        return float(special.stdtr(self.seeds - 1, -gaps / self.error).mean())

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the central interval; NaN with fewer than two seeds."""
        if not math.isfinite(self.error):
            return math.nan, math.nan
        tail = (1 - confidence) / 2
        if self.error == 0 or not np.ptp(self.shifts):
            below, above = np.quantile(self.shifts, (tail, 1 - tail))
            half = self.error * stats.t.isf(tail, self.seeds - 1)
            return float(self.mean + below - half), float(self.mean + above + half)
        # A quantile of a sum of two parts lies between the sums of extreme values of the parts.
        reach = self.error * stats.t.isf(tail / 2, self.seeds - 1)
        low, high = self.mean + self.shifts.min() - reach, self.mean + self.shifts.max() + reach
        return (
            float(optimize.brentq(lambda x: self.below(x) - tail, low, high)),
            float(optimize.brentq(lambda x: self.above(x) - tail, low, high)),
        )

    def scaled(self, factor: float) -> "Confidence":
        """Returns the confidence distribution of a multiple of the mean, for a positive factor."""
        mean, error, point = (factor * one for one in (self.mean, self.error, self.point))
        return Confidence(mean, error, self.seeds, factor * self.shifts, point)


def of_seeds(values: ArrayLike) -> Confidence:
    """Returns the confidence distribution of the mean of one value per seed: Student's t.

    The finite test set is not taken into account. A value that is not finite makes everything NaN:
    see `diverged_as_worst`.
    """
    sample = np.asarray(values, float).ravel()
    if not np.isfinite(sample).all():
        return Confidence(math.nan, math.nan, len(sample), np.zeros(1))
    mean = float(sample.mean()) if len(sample) else math.nan
    error = sample.std(ddof=1) / math.sqrt(len(sample)) if len(sample) > 1 else math.nan
    if len(sample) and not np.ptp(sample):
        mean, error = float(sample[0]), error * 0  # sums round
    return Confidence(mean, float(error), len(sample), np.zeros(1))


def of_correctness(
    correct: ArrayLike,
    baseline: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Confidence:
    """Returns the confidence distribution of an accuracy, or of a paired difference of two.

    It covers other seeds and other test examples from the same distribution.

    Args:
      correct: boolean, of shape (seeds, examples). The row of a diverged run is False throughout,
        which is the worst outcome.
      baseline: what `correct` is compared with: the same seeds and examples, in the same order.
        None for the accuracy itself.
      resamples: bootstrap draws of the test examples.
      seed: the seed of these draws.
    """
    table = _table(correct)
    if baseline is not None:
        other = _table(baseline)
        if other.shape != table.shape:
            raise ValueError(
                f"Paired correctness needs equal shapes (seeds, examples), not {table.shape} and "
                f"{other.shape}."
            )
        table = table - other
    of_seed = of_seeds(table.mean(1))
    effects = _example_effects(table)
    rng = np.random.default_rng(seed)
    # To resample the examples is to draw how often each distinct value occurs among them.
    values, counts = np.unique(effects, return_counts=True)
    shares = counts / len(effects)
    shifts = rng.multinomial(len(effects), shares, resamples) @ values / len(effects)
    return of_seed._replace(shifts=shifts, point=0.01)


def joint_draws(cells: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Returns draws from the joint confidence distribution of several means.

    All cells share the seeds and the test examples, so that their errors are correlated as in the
    data.

    Args:
      cells: what each mean is taken over: boolean correctness of shape (seeds, examples), or one
        value per seed, of shape (seeds,), for which the test set is not taken into account.
      resamples: the number of draws.
      seed: the seed of the draws.

    Returns:
      The draws, of shape (resamples, len(cells)).
    """
    arrays = [np.asarray(cell) for cell in cells]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"All cells must have the same seeds and examples, not {sorted(shapes)}.")
    tables = [_table(a) if a.ndim == 2 else a.astype(float)[:, None] for a in arrays]
    by_seed = np.stack([table.mean(1) for table in tables], 1)
    seeds, means = len(by_seed), by_seed.mean(0)
    if seeds < 2:
        raise ValueError("The spread over seeds needs at least 2 seeds.")
    examples = arrays[0].shape[1] if arrays[0].ndim == 2 else 0
    weights, counts = _weights_and_counts(seeds, examples, resamples, seed)
    draws: Floats = means + weights @ (by_seed - means)
    if examples:
        effects = np.stack([_example_effects(table) for table in tables], 1)
        parts = max(1, resamples * examples // 2**22)
        for rows, some in zip(
            np.array_split(draws, parts), np.array_split(counts, parts), strict=True
        ):
            rows += some @ effects / examples  # in place
    return draws


@functools.lru_cache(maxsize=4)
def _weights_and_counts(
    seeds: int, examples: int, resamples: int, seed: int
) -> tuple[Floats, NDArray[np.uint8]]:
    """The draws that do not depend on the data: weights of the seeds, and resampled examples.

    They take far longer than what is done with them, and many curves have the same shape.
    """
    rng = np.random.default_rng(seed)
    # Combinations of the seeds' deviations have their covariance: a multivariate t distribution.
    weights = rng.standard_normal((resamples, seeds)) / math.sqrt(seeds * (seeds - 1))
    weights /= np.sqrt(rng.chisquare(seeds - 1, (resamples, 1)) / (seeds - 1))
    counts = np.empty((resamples, examples), np.uint8)  # an example is never drawn 256 times
    for rows in np.array_split(counts, max(1, resamples * examples // 2**22)) if examples else ():
        rows[:] = rng.multinomial(examples, np.full(examples, 1 / examples), len(rows))
    return weights, counts


def diverged_as_worst(
    *values: ArrayLike, good: int = 1, worst: float | None = None
) -> tuple[Floats, ...]:
    """Replaces values that are not finite, as those of diverged runs, by the worst outcome.

    Args:
      *values: the values of the methods that are compared.
      good: 1 if large values are good, -1 if small values are.
      worst: the worst possible outcome, for example 0 for an accuracy; None for the worst finite
        value among all methods.
    """
    arrays = [np.asarray(one, float) for one in values]
    known = np.concatenate([array[np.isfinite(array)] for array in arrays])
    if worst is None:
        worst = good * float((good * known).min()) if len(known) else math.nan
    return tuple(np.where(np.isfinite(array), array, worst) for array in arrays)


def _table(correct: ArrayLike) -> Floats:
    array = np.asarray(correct)
    if array.dtype != np.bool_ or array.ndim != 2:
        raise ValueError(
            "Correctness must be boolean of shape (seeds, examples), for example "
            f"np.stack([predictions == y, ...]), not {array.dtype} of shape {array.shape}."
        )
    return array.astype(float)


def _example_effects(table: Floats) -> Floats:
    """The deviations of the examples' means, without the part that ε contributes to them."""
    seeds, examples = table.shape
    mean, by_seed, by_example = table.mean(), table.mean(1), table.mean(0)
    residuals = table - by_seed[:, None] - by_example + mean
    freedom = (seeds - 1) * (examples - 1)
    of_noise = (residuals**2).sum() / freedom if freedom else 0.0
    of_examples = seeds * ((by_example - mean) ** 2).sum() / max(1, examples - 1)
    shrunken = math.sqrt(max(0.0, 1 - of_noise / of_examples)) if of_examples else 0.0
    effects: Floats = shrunken * (by_example - mean)
    return effects
