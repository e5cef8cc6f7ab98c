"""The summary: what is chosen on which set, gains, and the cost of the plain optimizer's best."""

import math

import numpy as np
import pytest

from benchmarks.common.statistics.correctness import packed
from benchmarks.frontier import processes
from benchmarks.frontier.records import Key
from benchmarks.frontier.summary import summarize
from benchmarks.frontier.table import tables
from benchmarks.frontier.tuning import Range, draw

SPACE = {"learning_rate": Range(0.01, 1.0)}
EXAMPLES, SEEDS, SEED = 400, 4, 7
BUDGETS = (0.5, 1.0, 2.0)
SHIFTS = {"plain": (-1, 1, -1, 1), "sam": (1, 1, -1, -1)}  # of the seeds, with mean 0
OPTIONS = {"trials": 3, "more": 0, "seeds": SEEDS, "tuning_seed": SEED}


def correctness(accuracy, shift):
    """Returns correctness with this accuracy, up to a shift by at most 2 of 400 examples."""
    correct = np.arange(EXAMPLES) < round(accuracy * EXAMPLES) + shift
    return np.random.default_rng(0).permutation(correct)


def records_of(method, validation, test, *, diverged=()):
    """Returns the records of a method: one validation and test accuracy per budget."""
    found = {}
    for budget, on_validation, on_test in zip(BUDGETS, validation, test, strict=True):
        common = {"method": method, "budget": budget, "steps": int(100 * budget)}
        common |= {"gradients": 100 * budget}
        for number, point in enumerate(draw(SPACE, 3, SEED)):
            found[Key(method, budget, "tuning", number)] = common | {
                "stage": "tuning",
                "number": number,
                "hyperparameters": point,
                "accuracy": on_validation - 0.1 * (number != 1),
                "loss": 0.5,
                "diverged": False,
            }
        for seed in range(SEEDS):
            failed = (budget, seed) in diverged
            found[Key(method, budget, "test", seed)] = common | {
                "stage": "test",
                "number": seed,
                "hyperparameters": point,
                "loss": 0.4,
                "calibration_error": 0.02,
                "diverged": failed,
                "measured": None if failed else {"lambda_max": 3.0, "noise_accuracy": 0.5},
                "correct": packed(correctness(on_test, SHIFTS[method][seed])).tolist(),
            }
    return found


def curves(**methods):
    records = {}
    for method, (validation, test, *diverged) in methods.items():
        records |= records_of(method, validation, test, diverged=[*diverged])
    spaces = dict.fromkeys(methods, SPACE)
    seconds = {"plain": 0.01, "sam": 0.02}
    return summarize(
        records, list(methods), BUDGETS, spaces, OPTIONS, EXAMPLES, seconds, quick=False
    )


def test_the_best_budget_is_the_one_of_the_validation_set():
    """On the test set, the first budget of the plain optimizer would be better."""
    (plain, sam) = curves(
        plain=([0.6, 0.8, 0.7], [0.9, 0.7, 0.65]), sam=([0.6, 0.7, 0.9], [0.6, 0.65, 0.8])
    )
    assert (plain.best, sam.best) == (1, 2)
    assert plain.cells[1].tuned.number == 1
    assert sam.gain.mean == pytest.approx(0.8 - 0.7, abs=1e-9)
    assert sam.verdict.verdict == "for"


def test_the_cost_at_which_a_curve_reaches_the_best_of_plain():
    """Plain has 0.7 at its best budget. SAM has 0.6 at cost 1 and 0.8 at cost 2: √2 between."""
    (plain, sam) = curves(
        plain=([0.6, 0.8, 0.7], [0.5, 0.7, 0.65]), sam=([0.6, 0.7, 0.9], [0.5, 0.6, 0.8])
    )
    assert sam.reach.cost == pytest.approx(math.sqrt(2), rel=1e-6)
    assert 1 < sam.reach.low < math.sqrt(2) < sam.reach.high < 2
    assert plain.reach.cost == pytest.approx(1.0)
    # A hundred steps of SAM per unit of the cost, each of which takes 0.02 s.
    assert sam.reach_seconds.cost == pytest.approx(2 * math.sqrt(2), rel=1e-6)
    assert plain.reach_seconds.cost == pytest.approx(1.0)


def test_a_method_that_never_reaches_it_says_so():
    (_, worse) = curves(
        plain=([0.6, 0.9, 0.7], [0.5, 0.9, 0.65]), sam=([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
    )
    assert math.isinf(worse.reach.cost)
    assert worse.gain.mean < 0
    assert worse.verdict.verdict != "for"
    shown, by_cost, tuning = (
        table.markdown()
        for table in tables(
            curves(
                plain=([0.6, 0.9, 0.7], [0.5, 0.9, 0.65]), sam=([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
            ),
            {
                "data": "digits",
                "model": "mlp",
                "label_noise": 0.4,
                "flatness": "no",
                "seeds": SEEDS,
                "trials": 3,
                "more": 0,
                "epochs": 40,
            },
            {"train_examples": 1437, "reference_gradients": 1120},
        )
    )
    assert "> 2" in shown
    assert "40% of the labels wrong" in shown
    assert "**90.0 (" in by_cost
    assert "| plain | 1 | 100 | 100 | 3 | 90.0 |" in tuning


def test_a_diverged_test_run_has_nothing_correct():
    (plain, sam) = curves(
        plain=([0.6, 0.8, 0.7], [0.5, 0.7, 0.65]),
        sam=([0.6, 0.7, 0.9], [0.5, 0.6, 0.8], (2.0, 3)),
    )
    assert sam.cells[2].diverged == 1
    assert not sam.cells[2].correct[3].any()
    assert sam.cells[2].accuracy.mean == pytest.approx(0.8 * 3 / 4, abs=0.01)
    assert sam.cells[2].measured["lambda_max"].count == SEEDS - 1
    assert plain.cells[2].diverged == 0


def test_a_process_prefers_what_it_has_compiled():
    left = [processes.Task(group, i) for i, group in enumerate("aabbc")]
    assert processes.next_task(left, "b", {"a", "b"}) == 2
    assert processes.next_task(left[:2] + left[4:], "b", {"a", "b"}) == 2, "nobody has begun c"
    assert processes.next_task(left[:2], "b", {"a", "b", "c"}) == 0
