"""The cost at which a curve reaches a level."""

import math

import numpy as np
import pytest

from benchmarks.common.statistics.curves import cost_to_reach

COSTS = (0.5, 1.0, 2.0, 4.0)
SPREAD = np.array([-0.001, 0.0, 0.001])  # over seeds


def points(*means):
    return [mean + SPREAD for mean in means]


def test_the_cost_is_interpolated_on_a_log_scale():
    found = cost_to_reach(COSTS, points(0.6, 0.7, 0.9, 0.95), 0.8)
    assert found.cost == pytest.approx(math.sqrt(2))
    assert 1 < found.low < found.cost < found.high < 2
    assert found.reached == 1


def test_the_first_crossing_counts():
    """A curve that falls again, as that of an optimizer that memorizes wrong labels."""
    assert cost_to_reach(COSTS, points(0.7, 0.9, 0.7, 0.9), 0.8).cost == pytest.approx(2**-0.5)


def test_a_curve_that_begins_above_has_the_smallest_cost():
    assert cost_to_reach(COSTS, points(0.9, 0.8, 0.9, 0.9), 0.8)[:3] == (0.5, 0.5, 0.5)


def test_a_level_that_is_not_reached_has_an_infinite_cost():
    found = cost_to_reach(COSTS, points(0.5, 0.6, 0.7, 0.75), 0.8)
    assert found == (math.inf, math.inf, math.inf, 0)


def test_the_level_varies_with_the_same_seeds():
    """The curve stays above its own point, with which its errors are shared."""
    wide = [mean + 100 * SPREAD for mean in (0.5, 0.6, 0.9, 0.9)]
    found = cost_to_reach(COSTS, wide, 0.6 + 100 * SPREAD)
    assert found[:3] == pytest.approx((1, 1, 1))
    alone = cost_to_reach(COSTS, wide, 0.6)
    assert alone.low < 0.9
    assert alone.high > 1.1


def test_costs_must_increase():
    with pytest.raises(ValueError, match="positive and increasing"):
        cost_to_reach((1, 1, 2, 4), points(0.5, 0.6, 0.7, 0.8), 0.6)
    with pytest.raises(ValueError, match="for 3 points"):
        cost_to_reach(COSTS, points(0.5, 0.6, 0.7), 0.6)


def test_the_interval_covers_the_true_cost():
    """Accuracies of 60, 70, 80 and 90%: the curve crosses 75% at the cost √2."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        hard = rng.uniform(-0.1, 0.1, 200)  # examples are as hard for all costs
        curve = [
            rng.random((4, 200)) < p + hard + rng.uniform(-0.05, 0.05, (4, 1))
            for p in (0.6, 0.7, 0.8, 0.9)
        ]
        found = cost_to_reach(COSTS, curve, 0.75, resamples=300)
        covered.append(found.low <= math.sqrt(2) <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97
