"""Effects: differences of accuracies and ratios of curvature, with diverged runs."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import effects
from benchmarks.common.statistics.confidence import of_correctness
from benchmarks.common.statistics.correctness import packed

LOSSES = np.array([2.0, 1.0, 0.5])


def run(curve=(), correct=None, **measured):
    found = {"measured": measured or None, "curve": list(curve), "seconds_per_step": 1.0}
    return found if correct is None else found | {"correct": packed(correct).tolist()}


def runs(examples=1000, **methods):
    return effects.Runs(
        {(method, seed): one for method, all in methods.items() for seed, one in enumerate(all)},
        examples,
    )


def accuracies(*values, name="test_accuracy"):
    return [run(**{name: value}) for value in values]


def along(losses, values, name="trace"):
    curvature = ({"loss": x, name: y} for x, y in zip(losses, values, strict=True))
    return run([{"curvature": one} for one in curvature], weights=1)


def test_a_gain_is_the_difference_in_points():
    found = effects.gain(runs(a=accuracies(0.9, 0.8), b=accuracies(0.7, 0.7)), "a", "b")
    assert found.mean == pytest.approx(15)
    assert found.error == pytest.approx(5)
    assert found.point == pytest.approx(1)


def test_correctness_gives_the_interval_over_test_examples():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 50)) < 0.9, rng.random((3, 50)) < 0.6
    rows = {"a": [run(correct=row, x=1) for row in a], "b": [run(correct=row, x=1) for row in b]}
    found = effects.gain(runs(50, **rows), "a", "b")
    assert found.interval() == pytest.approx(of_correctness(a, b).scaled(100).interval())


def test_without_correctness_the_test_set_counts_by_a_bound():
    """The bound is attained by methods that never fail on the same example."""
    found = effects.gain(
        runs(400, a=accuracies(0.9, 0.9, 0.9), b=accuracies(0.8, 0.8, 0.8)), "a", "b"
    )
    assert found.shifts.std() == pytest.approx(100 * math.sqrt(0.3 / 400), rel=0.01)
    examples = np.repeat([1, -1, 0], [80, 40, 280])  # a is right where b fails, and vice versa
    assert examples.std() / math.sqrt(400) <= math.sqrt(0.3 / 400)
    noisy = runs(
        9000,
        a=accuracies(0.9, 0.9, name=effects.NOISE_ACCURACY),
        b=accuracies(0.8, 0.8, name=effects.NOISE_ACCURACY),
    )
    found = effects.gain(
        noisy, "a", "b", effects.NOISE_ACCURACY
    )  # which is measured on 1024 examples
    assert found.shifts.std() == pytest.approx(100 * math.sqrt(0.3 / 1024), rel=0.01)


def test_a_diverged_run_has_no_accuracy_and_the_worst_flatness():
    diverged = {"a": [*accuracies(0.9), run()], "b": accuracies(0.8, 0.8)}
    assert effects.gain(runs(**diverged), "a", "b").mean == pytest.approx((10 - 80) / 2)
    rows = {"a": [run(trace=1), run(trace=8), run()], "b": [run(trace=2)] * 3}
    np.testing.assert_allclose(effects.flatter(runs(**rows), "a", "b", "trace"), [1, -2, -2])
    curves = {"a": [along(LOSSES, LOSSES), run()], "b": [along(LOSSES, 4 * LOSSES)] * 2}
    for compared in (effects.flatter_during_training, effects.flatter_at_same_loss):
        np.testing.assert_allclose(compared(runs(**curves), "a", "b", "trace"), [2, 2])


def test_a_diverged_row_counts_as_wrong_throughout():
    correct = np.ones((2, 10), bool)
    rows = {
        "a": [run(correct=correct[0], x=1), run()],
        "b": [run(correct=row, x=1) for row in correct],
    }
    assert effects.gain(runs(10, **rows), "a", "b").mean == -50


def test_flatter_is_positive_where_the_measure_is_smaller():
    found = runs(flat=[run(lambda_max=1.0), run(lambda_max=0.0)], sharp=[run(lambda_max=4.0)] * 2)
    np.testing.assert_allclose(effects.flatter(found, "flat", "sharp", "lambda_max"), [2, 2])
    np.testing.assert_allclose(effects.flatter(found, "sharp", "flat", "lambda_max"), [-2, -2])


def test_flatter_during_training_and_at_the_same_loss():
    """The trace is loss² and 8 loss²; the second run is ahead by one measurement."""
    flat, sharp = along(LOSSES, LOSSES**2), along(LOSSES / 2, 8 * (LOSSES / 2) ** 2)
    found = runs(flat=[flat], sharp=[sharp])
    assert effects.flatter_during_training(found, "flat", "sharp", "trace") == pytest.approx([1])
    assert effects.flatter_at_same_loss(found, "flat", "sharp", "trace") == pytest.approx([3])
    apart = runs(flat=[flat], sharp=[along(LOSSES / 100, LOSSES)])
    assert np.isnan(effects.flatter_at_same_loss(apart, "flat", "sharp", "trace")).all()


def test_the_time_ratio_is_above_one_for_a_slower_method():
    slow = [run(x=1) | {"seconds_per_step": seconds} for seconds in (6.0, 4.0)]
    found = runs(slow=slow, plain=[run(x=1) | {"seconds_per_step": 2.0}])
    assert found.time_ratio("slow", "plain") == pytest.approx(2)


def test_correlation_is_over_settings_and_one_per_seed():
    rows = [np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([5.0, 1.0])]
    np.testing.assert_allclose(effects.correlation([0.1, 0.2, 0.3], rows), [1, -1])


def test_partial_correlation_follows_from_the_three_correlations():
    x, y, z = np.random.default_rng(0).permuted(np.tile(np.arange(9.0), (3, 1)), axis=1)
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert effects.partial_correlation(x, y, z) == pytest.approx(expected)
    assert effects.partial_correlation(x, -z, z) == 0, "nothing is left of y"
