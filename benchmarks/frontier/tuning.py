"""Tunes hyperparameters by quasi-random search in ranges that widen where the best trial asks.

The first round draws points of a scrambled Halton sequence, as AlgoPerf does (Dahl et al. 2023,
arXiv 2306.07179), on a logarithmic scale. If the best trial is in the outer tenth of a range, that
range grows outward by half of its width, and a further round searches there. Only the validation
set decides.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scipy.stats import qmc

OUTER = 0.1  # a best trial in this fraction of a range, at either end, widens it
GROWTH = 0.5  # by this fraction of its logarithmic width
MOST_ROUNDS = 4  # rounds after the first one
Point = dict[str, float]


class Range(NamedTuple):
    """The range of a hyperparameter that is searched on a logarithmic scale.

    Attributes:
      low: the lower end, positive.
      high: the upper end.
      least: the search never goes below this value, for example because smaller values have no
        effect. A best trial next to it is not a reason to widen the range.
      most: the search never goes above this value.
    """

    low: float
    high: float
    least: float = 0.0
    most: float = math.inf


class Score(NamedTuple):
    """How good a trial is on the validation set; scores are compared in this order.

    Attributes:
      finite: whether the training did not diverge.
      accuracy: the fraction of correct predictions.
      negative_loss: minus the mean cross-entropy, which decides between equal accuracies.
    """

    finite: bool
    accuracy: float
    negative_loss: float


Space = Mapping[str, Range]


class Search(NamedTuple):
    """The outcome of a search.

    Attributes:
      number: the number of the best trial, counted from 0.
      point: its hyperparameters.
      score: its score.
      trials: the number of trials.
      space: the ranges at the end.
      at_edge: the hyperparameters whose best value is still in the outer tenth of its range.
    """

    number: int
    point: Point
    score: Score
    trials: int
    space: dict[str, Range]
    at_edge: list[str]


def search(
    evaluate: Callable[[int, Point], Score], space: Space, trials: int, more: int, seed: int
) -> Search:
    """Searches for the best hyperparameters.

    Args:
      evaluate: returns the score of trial number `i` with some hyperparameters.
      space: the range of each hyperparameter.
      trials: the number of trials of the first round.
      more: the number of trials of each further round.
      seed: decides the trials.
    """
    ranges = dict(space)
    points = draw(ranges, trials, seed)
    scores = [evaluate(i, point) for i, point in enumerate(points)]
    for round_ in range(1, MOST_ROUNDS + 1):
        best = points[scores.index(max(scores))]
        ends = at_edge(best, ranges)
        if not ends or more == 0:
            break
        ranges, box = widen(best, ranges, ends)
        fresh = draw(box, more, seed + round_)
        scores += [evaluate(len(points) + i, point) for i, point in enumerate(fresh)]
        points += fresh
    number = scores.index(max(scores))  # the first of equal ones
    ends = at_edge(points[number], ranges)
    return Search(number, points[number], scores[number], len(points), ranges, list(ends))


def draw(space: Space, count: int, seed: int) -> list[Point]:
    """Returns points of a scrambled Halton sequence, uniform in the logarithms of the ranges."""
    unit = qmc.Halton(len(space), rng=seed).random(count)
    return [
        {
            name: range_.low * (range_.high / range_.low) ** float(u)
            for (name, range_), u in zip(space.items(), row, strict=True)
        }
        for row in unit
    ]


def at_edge(point: Point, space: Space) -> dict[str, int]:
    """Returns the hyperparameters in the outer tenth of their range: -1 at its low end, 1 at high.

    An end that has reached the limit of the hyperparameter does not count.
    """
    ends = {}
    for name, range_ in space.items():
        place = math.log(point[name] / range_.low) / math.log(range_.high / range_.low)
        if place < OUTER and range_.low > range_.least:
            ends[name] = -1
        if place > 1 - OUTER and range_.high < range_.most:
            ends[name] = 1
    return ends


def widen(
    best: Point, space: Space, ends: Mapping[str, int]
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Widens ranges outward, and returns them with the box for the trials of the next round.

    In a range that grows, the box goes from its outer tenth to its new end. In the others, it is
    the half of the range around the best trial.
    """
    grown, box = dict(space), {}
    for name, range_ in space.items():
        low, high, width = range_.low, range_.high, range_.high / range_.low
        if ends.get(name) == -1:
            grown[name] = range_._replace(low=max(range_.least, low * width**-GROWTH))
            low, high = grown[name].low, low * width**OUTER
        elif ends.get(name) == 1:
            grown[name] = range_._replace(high=min(range_.most, high * width**GROWTH))
            low, high = high * width**-OUTER, grown[name].high
        else:
            low, high = max(low, best[name] * width**-0.25), min(high, best[name] * width**0.25)
        box[name] = range_._replace(low=low, high=high)
    return grown, box
