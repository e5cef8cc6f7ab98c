"""The verdict on a claim: reproduced, not reproduced or inconclusive.

A claim predicts that some quantities, its effects, are above zero. Each effect is measured once per
seed, paired where it compares two methods, and has a 95% confidence interval from Student's t
distribution. The claim is

- not reproduced if the interval of at least one effect is entirely below zero,
- reproduced if the intervals of all effects are entirely above zero, and
- inconclusive otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

from numpy.typing import ArrayLike

from benchmarks.common.statistics import estimates

VERDICTS = REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = (
    "reproduced",
    "not reproduced",
    "inconclusive",
)


class Effect(NamedTuple):
    """A quantity that a claim predicts to be above zero.

    Attributes:
      quantity: what is measured, in words, with the unit.
      mean: the mean over the seeds.
      low: the lower end of the 95% confidence interval; NaN with fewer than two seeds.
      high: the upper end of the interval; NaN with fewer than two seeds.
      seeds: the number of seeds with a finite value.
    """

    quantity: str
    mean: float
    low: float
    high: float
    seeds: int


def effect(quantity: str, values: ArrayLike) -> Effect:
    """Returns the effect of one value per seed; values that are not finite are left out."""
    found = estimates.estimate(estimates.finite(values))
    return Effect(quantity, found.mean, found.low, found.high, found.count)


def exact(quantity: str, value: float) -> Effect:
    """Returns the effect of a number that does not depend on a seed."""
    return Effect(quantity, float(value), float(value), float(value), 1)


def verdict(effects: Sequence[Effect]) -> str:
    """Returns the verdict on a claim that predicts these effects.

    An effect without an interval makes the verdict inconclusive, unless another effect is below
    zero.
    """
    if any(one.high < 0 for one in effects):
        return NOT_REPRODUCED
    return REPRODUCED if all(one.low > 0 for one in effects) else INCONCLUSIVE
