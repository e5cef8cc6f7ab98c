"""Summarizes a frontier: accuracy at each cost, the best cost, and the cost of plain's best.

Everything that is chosen (hyperparameters, and each method's best budget) is chosen on the
validation set. Accuracies, and the costs at which a curve reaches a level, come from the test set.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.statistics import confidence, questions
from benchmarks.common.statistics.correctness import unpacked
from benchmarks.common.statistics.curves import Reach, cost_to_reach
from benchmarks.common.statistics.estimates import Estimate, estimate, number
from benchmarks.frontier.records import PLAIN, Key, Record, score
from benchmarks.frontier.tuning import Point, Range, Search, search

MEASURED = ("train_loss", "lambda_max", "trace", "noise_accuracy", "weight_norm")


class Cell(NamedTuple):
    """A method at a budget, tuned and tested.

    Attributes:
      budget: the budget in units of the reference number of gradients.
      steps: the number of training steps.
      gradients: the number of gradients that they take.
      tuned: the outcome of the tuning.
      correct: whether each test example is classified correctly, of shape (seeds, examples). A
        diverged run has none right.
      accuracy: the confidence distribution of the test accuracy.
      seconds: the time of the training steps, without compilation.
      measured: the other measurements of the test runs that did not diverge.
      diverged: the number of test runs that diverged.
    """

    budget: float
    steps: int
    gradients: float
    tuned: Search
    correct: np.ndarray
    accuracy: confidence.Confidence
    seconds: float
    measured: dict[str, Estimate]
    diverged: int


class Curve(NamedTuple):
    """A method at all budgets.

    Attributes:
      method: the name of the method.
      cells: one per budget, in ascending order.
      best: the position of the cell with the best validation score.
      gain: the test accuracy of the best cell minus that of the best cell of the plain optimizer.
      verdict: whether the gain is above zero, corrected for the number of methods.
      reach: the cost at which the curve reaches the plain optimizer's best test accuracy.
      reach_seconds: the same in seconds of training.
    """

    method: str
    cells: list[Cell]
    best: int
    gain: confidence.Confidence
    verdict: questions.Verdict
    reach: Reach
    reach_seconds: Reach


def summarize(
    records: Mapping[Key, Record],
    methods: Sequence[str],
    budgets: Sequence[float],
    spaces: Mapping[str, Mapping[str, Range]],
    options: Mapping[str, Any],
    test_examples: int,
    step_seconds: Mapping[str, float],
    *,
    quick: bool,
) -> list[Curve]:
    """Returns the curve of each method, of which the plain optimizer is the first.

    Args:
      records: all records of the frontier.
      methods: the methods, the plain optimizer first.
      budgets: the budgets in ascending order.
      spaces: the ranges that each method was tuned in at first.
      options: `trials`, `more`, `seeds` and `tuning_seed`.
      test_examples: the number of predictions on the test set.
      step_seconds: the time of a training step of each method.
      quick: whether the job only shows that the command works, which allows no verdict.
    """
    cells = {
        method: [
            _cell(
                records,
                method,
                budget,
                spaces[method],
                options,
                test_examples,
                step_seconds[method],
            )
            for budget in budgets
        ]
        for method in methods
    }
    bests = {method: best_of(some) for method, some in cells.items()}
    target = cells[PLAIN][bests[PLAIN]].correct
    gains = {
        method: confidence.of_correctness(some[bests[method]].correct, target)
        for method, some in cells.items()
    }
    asked = [questions.superiority(gains[m], quick=quick) for m in methods if m != PLAIN]
    answers = iter(questions.verdicts(asked))
    own = questions.Verdict(questions.NONE, math.nan, "It is the baseline.")
    curves = []
    for method in methods:
        some = cells[method]
        curves.append(
            Curve(
                method=method,
                cells=some,
                best=bests[method],
                gain=gains[method],
                verdict=own if method == PLAIN else next(answers),
                reach=_reach(budgets, some, target),
                reach_seconds=_reach([cell.seconds for cell in some], some, target),
            )
        )
    return curves


def best_of(cells: Sequence[Cell]) -> int:
    """Returns the position of the cell with the best validation score, the cheapest of equals."""
    scores = [cell.tuned.score for cell in cells]
    return scores.index(max(scores))


def _reach(costs: Sequence[float], cells: Sequence[Cell], target: np.ndarray) -> Reach:
    if len(target) < 2:
        return Reach(math.nan, math.nan, math.nan, math.nan)
    return cost_to_reach(costs, [cell.correct for cell in cells], target)


def _cell(
    records: Mapping[Key, Record],
    method: str,
    budget: float,
    space: Mapping[str, Range],
    options: Mapping[str, Any],
    test_examples: int,
    step_seconds: float,
) -> Cell:
    def evaluate(trial: int, point: Point) -> Any:
        record = records[Key(method, budget, "tuning", trial)]
        for name, value in point.items():
            if record["hyperparameters"][name] != value:
                raise ValueError(f"{method} at {budget}: trial {trial} has another {name}")
        return score(record)

    tuned = search(evaluate, space, options["trials"], options["more"], options["tuning_seed"])
    runs = [records[Key(method, budget, "test", seed)] for seed in range(options["seeds"])]
    correct = np.stack([unpacked(run["correct"], test_examples) for run in runs])
    diverged = np.array([run["diverged"] for run in runs])
    correct &= ~diverged[:, None]
    finite = [run for run in runs if not run["diverged"]]
    measured = {
        name: estimate([number(run["measured"].get(name)) for run in finite]) for name in MEASURED
    }
    measured |= {
        name: estimate([number(run[name]) for run in finite])
        for name in ("loss", "calibration_error")
    }
    return Cell(
        budget=budget,
        steps=runs[0]["steps"],
        gradients=runs[0]["gradients"],
        tuned=tuned,
        correct=correct,
        accuracy=confidence.of_correctness(correct),
        seconds=runs[0]["steps"] * step_seconds,
        measured=measured,
        diverged=int(diverged.sum()),
    )
