"""The summary of a comparison: which methods are marked as the best, and times."""

import numpy as np
import pytest

from benchmarks.common.measuring import Measurement
from benchmarks.common.statistics.times import time_ratio
from benchmarks.compare.plots import stability
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


def test_stability_is_lambda_times_the_learning_rate_of_the_step():
    configuration = {"learning_rate": 0.2, "warmup_epochs": 0, "epochs": 4, "weight_decay": 0.5}
    steps = np.array([10, 21, 40])
    lambda_max = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rates = 0.1 * (1 + np.cos(np.pi * (steps - 1) / 40))
    np.testing.assert_allclose(
        stability(lambda_max, steps, 40, configuration), (lambda_max + 0.5) * rates, rtol=1e-4
    )
    warm = configuration | {"warmup_epochs": 1}
    first = stability(lambda_max[:, :1], np.array([6]), 40, warm)  # in the middle of the warmup
    np.testing.assert_allclose(first, (lambda_max[:, :1] + 0.5) * 0.1, rtol=1e-5)
