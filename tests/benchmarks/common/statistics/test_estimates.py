"""Means, medians, their intervals, and which methods are best."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.common.statistics.estimates import Estimate, best, estimate, finite, median

VALUES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])


def test_standard_error_and_interval_match_the_closed_form():
    """The interval is mean ± t·s/√n, with t the 97.5% quantile at n − 1 degrees of freedom."""
    found = estimate([1.0, 2.0, 3.0])
    half = 4.302652729749464 / math.sqrt(3)  # of 2 degrees of freedom; s = 1
    assert found == pytest.approx((2, 1 / math.sqrt(3), 2 - half, 2 + half, 3))


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_matches_the_one_of_scipys_t_test(confidence):
    found = estimate(VALUES, confidence)
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.standard_error == pytest.approx(VALUES.std(ddof=1) / math.sqrt(len(VALUES)))


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([7.0], 7.0)])
def test_too_few_values_have_no_error(values, mean):
    found = estimate(values)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert np.isnan(found[1:4]).all()
    assert found.count == len(values)


def test_equal_values_have_an_error_of_zero():
    assert estimate([2.0, 2.0, 2.0]) == (2, 0, 2, 2, 3)


def test_a_value_that_is_not_finite_is_not_dropped_silently():
    assert np.isnan(estimate([1.0, math.nan]).mean)
    assert estimate(finite([1.0, math.nan, 3.0, math.inf])).mean == 2


def test_scaling_commutes_with_estimating():
    assert estimate(VALUES).scaled(100) == pytest.approx(estimate(100 * VALUES))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(0.5, 0.125, 0, 1, 3), "0.50 ± 0.1"),
        (Estimate(0.5, math.nan, math.nan, math.nan, 1), "0.50"),
        (Estimate(math.nan, math.nan, math.nan, math.nan, 0), "-"),
    ],
)
def test_text_shows_the_error_only_if_it_is_known(found, text):
    assert found.text(".2f", ".1f") == text


def test_interval_of_the_median_is_that_of_order_statistics():
    """Of 20 values, the 6th and 15th smallest: P(Binomial(20, 1/2) ≤ 5) = 2.1% < 2.5%."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 21))
    assert median(values) == (10.5, 6, 15, 20)


def test_a_median_of_few_values_has_no_interval():
    """Five values cannot give 95%: all lie on one side of the median with probability 2/2⁵."""
    found = median(VALUES[:5])
    assert found.median == 3
    assert np.isnan(found[1:3]).all()
    assert np.isfinite(median(VALUES)[1:3]).all()


def test_the_best_mean_shares_its_place_within_a_standard_error():
    values = {
        "winner": {0: 3.0, 1: 5.0, 2: 4.0},
        "close": {0: 3.2, 1: 4.6, 2: 3.9},  # behind by 0.1 ± 0.17
        "worse": {0: 2.5, 1: 4.5, 2: 3.5},  # behind by 0.5 ± 0
        "unknown": {0: 9.0, 1: math.nan},
        "empty": {},
    }
    assert best(values) == ["winner", "close"]
    negated = {label: {s: -v for s, v in of_seed.items()} for label, of_seed in values.items()}
    assert best(negated, -1) == ["winner", "close"]


def test_one_seed_has_one_best_method():
    assert best({"a": {0: 1.0}, "b": {0: 1.0 - 1e-9}}) == ["a"]
    assert best({"a": {0: math.nan}}) == []
