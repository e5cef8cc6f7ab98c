"""Confidence distributions: against SciPy, and by simulation with a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.common.statistics.confidence import (
    Confidence,
    diverged_as_worst,
    joint_draws,
    of_correctness,
    of_seeds,
)

VALUES = np.array([0.3, 0.1, 0.45, -0.1, 0.25])


def two_methods(rng, seeds, examples, of_seed, of_example, accuracy=(0.8, 0.8)):
    """Correctness of two methods whose accuracies are known.

    A seed and an example raise or lower the probability of a correct answer by up to `of_seed` and
    `of_example`, independently for both methods.
    """
    return [
        rng.random((seeds, examples))
        < p
        + rng.uniform(-of_seed, of_seed, (seeds, 1))
        + rng.uniform(-of_example, of_example, (1, examples))
        for p in accuracy
    ]


def test_without_examples_it_is_students_t():
    found = of_seeds(VALUES)
    test = stats.ttest_1samp(VALUES, 0.05, alternative="greater")
    assert found.below(0.05) == pytest.approx(test.pvalue)
    assert found.above(0.05) == pytest.approx(1 - test.pvalue)
    for confidence in (0.9, 0.95):
        expected = stats.ttest_1samp(VALUES, 0).confidence_interval(confidence)
        assert found.interval(confidence) == pytest.approx(tuple(expected))


def test_the_bootstrap_of_the_examples_is_a_binomial():
    """All seeds agree here, so that only the examples vary."""
    correct = np.random.default_rng(0).random(200) < 0.9
    found = of_correctness(np.stack([correct] * 3), resamples=20_000)
    bootstrap = stats.binom(200, correct.mean())
    np.testing.assert_allclose(found.interval(), np.array(bootstrap.interval(0.95)) / 200)
    assert found.shifts.std() == pytest.approx(bootstrap.std() / 200, rel=0.02)


def test_the_variance_is_that_of_the_analysis_of_variance():
    """The variance of the mean of a two-way layout, from its three mean squares."""
    a, b = two_methods(np.random.default_rng(3), 4, 300, 0.1, 0.15)
    table = a.astype(float) - b
    rows, columns = table.mean(1), table.mean(0)
    noise = table - rows[:, None] - columns + table.mean()
    squares = [
        300 * rows.var(ddof=1),
        4 * columns.var(ddof=1),
        (noise**2).sum() / (3 * 299),
    ]
    found = of_correctness(a, b, resamples=50_000)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.error == pytest.approx(math.sqrt(squares[0] / 1200))
    assert found.shifts.std() == pytest.approx(
        math.sqrt((squares[1] - squares[2]) / 1200), rel=0.02
    )
    assert abs(found.shifts.mean()) < 1e-3


def test_the_ends_of_an_interval_are_quantiles():
    found = of_correctness(*two_methods(np.random.default_rng(1), 5, 100, 0.1, 0.1))
    low, high = found.interval(0.9)
    assert (found.below(low), found.above(high)) == pytest.approx((0.05, 0.05))
    assert found.below(0.01) + found.above(0.01) == pytest.approx(1)
    assert found.scaled(100).interval(0.9) == pytest.approx((100 * low, 100 * high))


def test_one_seed_has_no_interval():
    found = of_seeds([0.3])
    assert found.mean == 0.3
    assert np.isnan([*found.interval(), found.below(0), found.above(0)]).all()


def test_equal_seeds_have_an_interval_of_length_zero():
    found = of_seeds([0.1, 0.1, 0.1])
    assert found.interval() == (0.1, 0.1)
    assert (found.error, found.below(0), found.below(0.2)) == (0, 0, 1)


def test_correctness_must_be_paired_and_boolean():
    with pytest.raises(ValueError, match=r"\(3, 20\) and \(3, 21\)"):
        of_correctness(np.ones((3, 20), bool), np.ones((3, 21), bool))
    with pytest.raises(ValueError, match="boolean"):
        of_correctness(np.ones((3, 20)))


def test_a_diverged_seed_counts_as_the_worst_outcome():
    a, b = diverged_as_worst([0.9, np.nan], [0.8, 0.7])
    np.testing.assert_array_equal((a, b), [[0.9, 0.7], [0.8, 0.7]])
    (losses,) = diverged_as_worst([1.0, np.inf, 3.0], good=-1)
    np.testing.assert_array_equal(losses, [1, 3, 3])
    (accuracy,) = diverged_as_worst([0.9, np.nan], worst=0)
    np.testing.assert_array_equal(accuracy, [0.9, 0])
    assert np.isnan(diverged_as_worst([np.nan])).all()


def covered(repetitions, seeds, examples, of_seed, of_example):
    """How often the 95% interval contains the true difference, which is 0.05."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(repetitions):
        methods = two_methods(rng, seeds, examples, of_seed, of_example, (0.8, 0.75))
        inside.append(0.025 <= of_correctness(*methods, resamples=300).below(0.05) <= 0.975)
    return np.mean(inside)


@pytest.mark.parametrize(
    ("seeds", "examples", "of_seed", "of_example"),
    [(5, 200, 0.02, 0.2), (3, 200, 0.1, 0.02)],
    ids=["examples", "seeds"],
)
def test_intervals_cover_the_truth(seeds, examples, of_seed, of_example):
    assert 0.93 <= covered(800, seeds, examples, of_seed, of_example) <= 0.97


@pytest.mark.nightly
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("examples", [100, 1000])
@pytest.mark.parametrize(("of_seed", "of_example"), [(0, 0), (0.1, 0), (0, 0.2), (0.1, 0.2)])
def test_intervals_cover_the_truth_in_many_cases(seeds, examples, of_seed, of_example):
    assert 0.93 <= covered(800, seeds, examples, of_seed, of_example) <= 0.97


def test_intervals_of_seeds_cover_the_truth():
    values = np.random.default_rng(0).normal(1, 2, (2000, 4))
    inside = [0.025 <= of_seeds(row).below(1) <= 0.975 for row in values]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_joint_draws_have_the_distribution_of_each_mean():
    """The draws of one mean agree with its confidence distribution; so do those of a difference."""
    cells = two_methods(np.random.default_rng(2), 6, 150, 0.1, 0.2, (0.7, 0.75))
    draws = joint_draws(cells, resamples=20_000)
    for column, cell in zip(draws.T, cells, strict=True):
        expected = of_correctness(cell).interval()
        assert np.quantile(column, (0.025, 0.975)) == pytest.approx(expected, abs=0.004)
    same = joint_draws([cells[0], cells[0]], resamples=100)
    np.testing.assert_allclose(same[:, 0], same[:, 1])


def test_joint_draws_of_values_per_seed_are_students_t():
    draws = joint_draws([VALUES, 2 * VALUES], resamples=50_000)
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval()
    assert np.quantile(draws[:, 0], (0.025, 0.975)) == pytest.approx(tuple(expected), abs=0.02)
    np.testing.assert_allclose(draws[:, 1], 2 * draws[:, 0])


def test_joint_draws_need_cells_of_one_shape_and_two_seeds():
    with pytest.raises(ValueError, match="same seeds and examples"):
        joint_draws([VALUES, VALUES[:3]])
    with pytest.raises(ValueError, match="at least 2 seeds"):
        joint_draws([VALUES[:1]])


def test_a_confidence_distribution_is_symmetric_in_its_sign():
    found = of_correctness(*two_methods(np.random.default_rng(4), 4, 80, 0.1, 0.1))
    negated = Confidence(-found.mean, found.error, found.seeds, -found.shifts)
    assert negated.below(-0.03) == pytest.approx(found.above(0.03))


def test_a_difference_of_accuracies_knows_its_unit():
    found = of_correctness(*two_methods(np.random.default_rng(4), 4, 80, 0.1, 0.1))
    assert found.point == 0.01
    assert found.scaled(100).point == pytest.approx(1)
    assert np.isnan(of_seeds(VALUES).scaled(100).point)
