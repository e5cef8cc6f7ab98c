"""The quasi-random search: its trials, its winner, and how ranges widen."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.frontier import tuning
from benchmarks.frontier.records import score
from benchmarks.frontier.tuning import Range, Score, search

SPACE = {"learning_rate": Range(0.01, 1.0), "rho": Range(0.05, 0.5)}


def around(**optimum):
    """Returns an evaluation whose accuracy falls with the logarithmic distance from an optimum."""
    seen = []

    def evaluate(number, point):
        assert number == len(seen), "trials are numbered in order"
        seen.append(point)
        distance = sum(math.log(point[name] / value) ** 2 for name, value in optimum.items())
        return Score(True, math.exp(-distance), 0.0)

    return evaluate, seen


def test_trials_fill_the_ranges_evenly_in_the_logarithm():
    points = tuning.draw(SPACE, 256, seed=1)
    for name, range_ in SPACE.items():
        logs = np.log([point[name] for point in points])
        places = (logs - math.log(range_.low)) / math.log(range_.high / range_.low)
        # Independent draws would deviate from uniform by about 0.05; a sequence of low
        # discrepancy deviates by less.
        assert stats.kstest(places, "uniform").statistic < 0.02
    correlation = np.corrcoef(*(np.log([p[name] for p in points]) for name in SPACE))[0, 1]
    assert abs(correlation) < 0.05


def test_trials_depend_on_the_seed_alone():
    assert tuning.draw(SPACE, 8, seed=1) == tuning.draw(SPACE, 8, seed=1)
    assert tuning.draw(SPACE, 8, seed=1) != tuning.draw(SPACE, 8, seed=2)


def test_the_best_trial_on_the_validation_set_wins():
    evaluate, seen = around(learning_rate=0.1, rho=0.15)
    found = search(evaluate, SPACE, 24, 0, seed=0)
    scores = [around(learning_rate=0.1, rho=0.15)[0](0, point).accuracy for point in seen]
    assert found.point == seen[int(np.argmax(scores))]
    assert found.number == int(np.argmax(scores))
    assert found.score.accuracy == max(scores)


def record(accuracy, loss, *, diverged=False, stage="tuning"):
    return {
        "method": "plain",
        "budget": 1.0,
        "stage": stage,
        "number": 0,
        "accuracy": accuracy,
        "loss": loss,
        "diverged": diverged,
    }


def test_loss_decides_between_equal_accuracies():
    assert score(record(0.9, 0.3)) > score(record(0.9, 0.4)) > score(record(0.8, 0.1))


def test_a_diverged_trial_is_worse_than_any_other():
    assert score(record(0.0, 50.0)) > score(record(0.99, 0.01, diverged=True))
    assert score(record(0.0, 50.0)) > score(record(0.1, math.nan, diverged=True))


def test_a_test_run_has_no_score():
    with pytest.raises(ValueError, match="only tuning trials"):
        score(record(0.9, 0.1, stage="test"))


@pytest.mark.parametrize(
    ("optimum", "end"), [(0.002, -1), (5.0, 1)], ids=["below the range", "above the range"]
)
def test_a_best_trial_at_an_end_widens_the_range(optimum, end):
    evaluate, seen = around(learning_rate=optimum, rho=0.15)
    found = search(evaluate, SPACE, 16, 8, seed=0)
    assert found.at_edge == []
    grown = found.space["learning_rate"]
    assert grown.low < optimum < grown.high
    assert (grown.low < 0.01) == (end == -1)
    assert (grown.high > 1.0) == (end == 1)
    assert 0.5 < found.point["learning_rate"] / optimum < 2
    assert found.trials == len(seen) > 16
    assert found.space["rho"] == SPACE["rho"]


def test_a_best_trial_inside_adds_no_trials():
    evaluate, seen = around(learning_rate=0.1, rho=0.15)
    assert search(evaluate, SPACE, 32, 8, seed=0).trials == len(seen) == 32


def test_the_outer_tenth_counts_as_the_end():
    """The places of 0.0158 and 0.0159 in the range from 0.01 to 1 are 0.0993 and 0.1007."""
    space = {"learning_rate": Range(0.01, 1.0)}
    assert tuning.at_edge({"learning_rate": 0.0158}, space) == {"learning_rate": -1}
    assert tuning.at_edge({"learning_rate": 0.0159}, space) == {}
    assert tuning.at_edge({"learning_rate": 0.629}, space) == {}
    assert tuning.at_edge({"learning_rate": 0.633}, space) == {"learning_rate": 1}


def test_a_range_does_not_widen_beyond_its_limits():
    space = {"weight_decay": Range(1e-5, 1e-2, least=1e-5), "horizon": Range(0.1, 0.8, most=1.0)}
    evaluate, seen = around(weight_decay=1e-9, horizon=30.0)
    found = search(evaluate, space, 64, 8, seed=0)
    assert found.at_edge == []
    assert found.space["weight_decay"].low == 1e-5
    assert found.space["horizon"].high == 1.0
    assert min(point["weight_decay"] for point in seen) >= 1e-5
    assert max(point["horizon"] for point in seen) <= 1.0


def test_a_range_that_never_suffices_is_reported():
    evaluate, _ = around(learning_rate=1e9, rho=0.15)
    found = search(evaluate, SPACE, 16, 8, seed=0)
    assert found.at_edge == ["learning_rate"]
    assert found.trials == 16 + 8 * tuning.MOST_ROUNDS


def test_a_search_repeats_itself():
    first, second = (
        search(around(learning_rate=5.0, rho=0.15)[0], SPACE, 16, 8, seed=0) for _ in range(2)
    )
    assert first == second
