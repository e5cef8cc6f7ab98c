"""Superiority, equivalence, Holm's correction and verdicts: oracles and simulated error rates."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks.common.statistics.confidence import of_seeds
from benchmarks.common.statistics.questions import (
    AGAINST,
    FOR,
    NONE,
    UNDECIDED,
    Question,
    all_of,
    equivalence,
    holm,
    superiority,
    verdicts,
)

VALUES = np.array([0.3, 0.1, 0.45, -0.1, 0.25])


def test_superiority_is_a_one_sided_t_test():
    found = superiority(of_seeds(VALUES))
    for p, side in ((found.p_for, "greater"), (found.p_against, "less")):
        assert p == pytest.approx(stats.ttest_1samp(VALUES, 0, alternative=side).pvalue)


def test_equivalence_is_two_one_sided_t_tests():
    found = equivalence(of_seeds(VALUES), 0.4)
    above, below = (
        stats.ttest_1samp(VALUES, bound, alternative=side).pvalue
        for bound, side in ((-0.4, "greater"), (0.4, "less"))
    )
    assert found.p_for == pytest.approx(max(above, below))
    assert found.p_against == pytest.approx(min(1, 2 * min(1 - above, 1 - below)))


def test_equivalence_holds_if_the_interval_is_inside_the_margin():
    effect = of_seeds(VALUES)
    margin = max(map(abs, effect.interval()))
    for factor, verdict in ((1.01, FOR), (0.99, UNDECIDED)):
        assert verdicts([equivalence(effect, factor * margin)])[0].verdict == verdict
    for shift in (-9, 9):
        assert verdicts([equivalence(of_seeds(VALUES + shift), 0.4)])[0].verdict == AGAINST


@pytest.mark.parametrize("margin", [0.0, -0.2, np.nan])
def test_equivalence_needs_a_gain_to_share(margin):
    (found,) = verdicts([equivalence(of_seeds(VALUES), margin)])
    assert found.verdict == NONE
    assert "no gain" in found.reason


@pytest.mark.parametrize(
    ("values", "quick", "reason"),
    [
        ([0.1, 0.1, 0.1, 0.1], False, "no spread between seeds"),
        ([0.1, 0.11], False, "2 seeds"),
        ([0.1, 0.11, 0.12], True, "quick"),
        ([0.1, np.nan, 0.12], False, "not finite"),
    ],
)
def test_some_data_cannot_decide(values, quick, reason):
    effect = of_seeds(values)
    for question in (superiority(effect, quick=quick), equivalence(effect, 1, quick=quick)):
        (found,) = verdicts([question])
        assert found.verdict == NONE
        assert reason in found.reason


@pytest.mark.parametrize(
    ("points", "seeds", "verdict"),
    [(0.9, 9, UNDECIDED), (0.9, 10, FOR), (1.1, 9, FOR), (-0.9, 9, UNDECIDED), (-1.1, 9, AGAINST)],
)
def test_a_difference_below_a_point_needs_ten_seeds(points, seeds, verdict):
    """As a fraction and in points, for superiority and equivalence; other quantities need not."""
    values = points + 0.01 * np.arange(seeds) - 0.005 * (seeds - 1)
    share = of_seeds(values / 100)._replace(point=0.01)
    for effect in (share, share.scaled(100)):
        assert verdicts([superiority(effect)])[0].verdict == verdict
        (equal,) = verdicts([equivalence(effect, 5 * effect.point)])
        assert equal.verdict == (UNDECIDED if verdict == UNDECIDED else FOR)
    assert verdicts([superiority(of_seeds(values))])[0].verdict == (FOR if points > 0 else AGAINST)


def test_an_undecided_small_difference_is_counted():
    """If it were not, the largest of many null effects would be judged as if it were the only one.

    With 20 null effects, of which about one has a mean above a point, that would be wrong often.
    """
    small = superiority(of_seeds([0.5, 0.6, 0.7])._replace(point=1.0))
    assert (small.p_for, small.p_against, small.reason) == (1, 1, "")
    values = np.random.default_rng(0).normal(0, 1, (60, 20, 4))
    pages = [
        verdicts([superiority(of_seeds(row)._replace(point=1.0)) for row in page])
        for page in values
    ]
    assert np.mean([any(one.verdict != UNDECIDED for one in page) for page in pages]) <= 0.05


def test_a_claim_needs_all_of_its_effects():
    strong, weak, bad = Question(0.001, 0.999), Question(0.2, 0.8), Question(0.998, 0.002)
    assert all_of([strong, weak]) == Question(0.2, 1)
    assert all_of([strong, weak, bad]) == Question(0.998, 0.006)
    assert all_of([strong, Question(1, 1, "a quick trial")]).reason == "a quick trial"


def test_holm_is_the_closed_test_of_bonferroni():
    """An adjusted p-value is the largest Bonferroni p-value of the sets that contain the test."""
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.04])
    subsets = [
        subset
        for size in range(1, len(p) + 1)
        for subset in itertools.combinations(range(len(p)), size)
    ]
    expected = [
        max(min(1, len(subset) * p[list(subset)].min()) for subset in subsets if i in subset)
        for i in range(len(p))
    ]
    np.testing.assert_allclose(holm(p), expected)
    assert holm([]).shape == (0,)


def test_questions_without_a_verdict_are_not_counted():
    question, unasked = Question(0.02, 0.98), Question(1, 1, "a quick trial")
    alone, (_, beside) = verdicts([question])[0], verdicts([unasked, question])
    assert alone == beside
    assert (alone.verdict, alone.p) == (FOR, pytest.approx(0.04))
    assert [one.verdict for one in verdicts([question, question])] == [UNDECIDED, UNDECIDED]


def false_verdicts(rng, pages, questions, seeds, ask):
    """The share of pages with at least one verdict `for` or `against`."""
    values = rng.standard_normal((pages, questions, seeds))
    found = [verdicts([ask(of_seeds(row)) for row in page]) for page in values]
    return np.mean([any(one.verdict != UNDECIDED for one in page) for page in found])


def test_a_page_of_null_effects_has_few_false_verdicts():
    rate = false_verdicts(np.random.default_rng(0), 500, 8, 5, superiority)
    assert 0.01 <= rate <= 0.05


@pytest.mark.slow
def test_a_page_of_null_claims_has_few_false_verdicts():
    """Claims with two effects each, over pages of 20 claims."""
    rng = np.random.default_rng(1)
    pages = []
    for _ in range(300):
        effects = [superiority(of_seeds(row)) for row in rng.standard_normal((40, 4))]
        claims = [all_of(effects[i : i + 2]) for i in range(0, 40, 2)]
        pages.append(any(one.verdict != UNDECIDED for one in verdicts(claims)))
    assert np.mean(pages) <= 0.05


def test_a_difference_at_the_margin_is_rarely_called_equal():
    rng = np.random.default_rng(0)
    for true in (-1, 1):
        values = true + 0.1 * rng.standard_normal((800, 4))
        found = [verdicts([equivalence(of_seeds(row), 1)])[0].verdict for row in values]
        assert np.mean([verdict == FOR for verdict in found]) <= 0.05
        assert np.mean([verdict == AGAINST for verdict in found]) <= 0.05


def test_large_effects_are_found():
    values = np.random.default_rng(0).normal(0, 1, (200, 5))
    for shift, expected in ((5, FOR), (-5, AGAINST)):
        found = [verdicts([superiority(of_seeds(row + shift))])[0].verdict for row in values]
        assert np.mean([verdict == expected for verdict in found]) > 0.95
    found = [verdicts([equivalence(of_seeds(row), 5)])[0].verdict for row in values]
    assert np.mean([verdict == FOR for verdict in found]) > 0.95
