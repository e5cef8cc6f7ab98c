"""The summary of a comparison: which methods are marked as the best, and times."""

import numpy as np
import pytest

from benchmarks.common.measuring import Measurement
from benchmarks.common.statistics.times import time_ratio
from benchmarks.compare.summary import BETTER, summarize

LARGE_IS_GOOD = {"test_accuracy", "noise_accuracy"}


def run(method, seed, value, seconds=1.0, machine=None):
    measured = dict.fromkeys(Measurement._fields, value + 0.001 * seed)
    timed = {"seconds_per_step": seconds, "machine": machine}
    return {"method": method, "seed": seed, "measured": measured} | timed


def test_the_star_is_on_the_largest_or_on_the_smallest_value():
    runs = [run(name, seed, x) for name, x in (("low", 1.0), ("high", 2.0)) for seed in (0, 1, 2)]
    low, high = summarize(runs, {"low": 1, "high": 2}, "low")
    assert set(high.best) == LARGE_IS_GOOD
    assert set(low.best) == BETTER.keys() - LARGE_IS_GOOD
    assert low.best, "small values are good, too"
    assert high.measured["trace"].standard_error == pytest.approx(
        np.std([0, 0.001, 0.002], ddof=1) / np.sqrt(3)
    )


def test_a_method_that_diverged_has_no_star():
    runs = [run("a", 0, 2.0), run("a", 1, 2.0) | {"measured": None}, run("b", 0, 1.0)]
    a, _ = summarize([*runs, run("b", 1, 1.0)], {"a": 1, "b": 1}, "b")
    assert a.best == []
    assert (a.seeds, a.diverged) == (2, 1)


def test_the_time_ratio_compares_fastest_epochs_of_one_machine():
    slow = [run("sam", 0, 0, 6.0, "x"), run("sam", 1, 0, 4.0, "x"), run("sam", 2, 0, 40.0, "y")]
    plain = [run("sgd", 0, 0, 2.0, "x"), run("sgd", 1, 0, 2.5, "x")]
    assert time_ratio(slow, plain) == pytest.approx(2)
    assert time_ratio(plain, slow) == pytest.approx(1 / 2)
    both = [*plain, run("sgd", 2, 0, 5.0, "y")]
    assert time_ratio(slow, both) == pytest.approx(4), "the geometric mean of 2 and 8"
    assert np.isnan(time_ratio(slow, []))
