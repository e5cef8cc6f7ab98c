"""The cost at which a curve of accuracy against compute reaches a level."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.common.statistics.confidence import RESAMPLES, Floats, joint_draws


class Reach(NamedTuple):
    """A cost with its interval.

    Attributes:
      cost: where the mean curve reaches the level; the smallest cost if it begins above it, and
        infinite if it never reaches it.
      low: the lower end of the interval.
      high: its upper end; infinite if the curve may never reach the level.
      reached: the share of the draws in which the curve reaches the level at any of the costs.
    """

    cost: float
    low: float
    high: float
    reached: float


def cost_to_reach(
    costs: Sequence[float],
    curve: Sequence[ArrayLike],
    level: float | ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Reach:
    """Returns the least cost at which a curve reaches a level.

    Between two costs, the curve is interpolated linearly in the logarithm of the cost. The interval
    comes from joint draws of all points of the curve and of the level.

    Args:
      costs: increasing and positive.
      curve: the runs at each cost: boolean correctness of shape (seeds, examples), or one value per
        seed.
      level: a number, or the runs that define it, in the same form as a point of the curve: for
        example the best point of the plain optimizer, from the same seeds.
      confidence: the confidence of the interval.
      resamples: the number of draws.
      seed: the seed of the draws.
    """
    grid = np.log(np.asarray(costs, float))
    if len(grid) != len(curve) or not (np.diff(grid) > 0).all() or not np.isfinite(grid).all():
        raise ValueError(
            f"Costs must be positive and increasing, one per point of the curve, not {costs} for "
            f"{len(curve)} points."
        )
    given = np.asarray(level)
    cells = [np.asarray(point) for point in curve]
    if given.ndim:
        cells.append(given)
    means = np.array([[cell.mean() for cell in cells]])
    draws = np.concatenate([means, joint_draws(cells, resamples=resamples, seed=seed)])
    levels = draws[:, -1] if given.ndim else np.full(len(draws), float(given))
    found = _crossings(grid, draws[:, : len(grid)], levels)
    tail = (1 - confidence) / 2
    # No interpolation between order statistics, which may be infinite.
    low, high = np.quantile(found[1:], (tail, 1 - tail), method="inverted_cdf")
    return Reach(float(found[0]), float(low), float(high), float(np.isfinite(found[1:]).mean()))


def _crossings(grid: Floats, curves: Floats, levels: Floats) -> Floats:
    """The cost of the first crossing of each curve, which is infinite without one."""
    above = curves >= levels[:, None]
    first = above.argmax(1)
    rows = np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    rise = curves[rows, first] - curves[rows, before]
    share = np.divide(
        levels - curves[rows, before], rise, out=np.ones(len(curves)), where=(first > 0)
    )
    where = grid[before] + share * (grid[first] - grid[before])
    crossing: Floats = np.where(above.any(1), np.exp(where), math.inf)
    return crossing
