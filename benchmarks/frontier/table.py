"""The tables of a frontier."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common import measuring
from benchmarks.common.statistics.confidence import Confidence
from benchmarks.common.statistics.curves import Reach
from benchmarks.common.statistics.estimates import written
from benchmarks.common.table import Cell, Table
from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.summary import Curve


def tables(
    curves: Sequence[Curve],
    options: dict[str, Any],
    dataset: dict[str, Any],
    corrected: str | None = "the number of methods",
) -> list[Table]:
    """Returns the tables: what each method reaches, its accuracy by cost, and its tuning.

    Args:
      curves: one per method, the plain optimizer first.
      options: the options of the frontier.
      dataset: the description of the data set.
      corrected: what the verdicts are corrected for; None for a table without verdicts.
    """
    return [_reached(curves, options, dataset, corrected), _by_cost(curves), _tuning(curves)]


def _reached(
    curves: Sequence[Curve],
    options: dict[str, Any],
    dataset: dict[str, Any],
    corrected: str | None,
) -> Table:
    noise = options["label_noise"]
    title = f"{options['data']}, {options['model']}: {dataset['train_examples']} training examples"
    title += f", {noise:.0%} of the labels wrong" if noise else ""
    with_flatness = options["flatness"] != "no"
    headings = [
        "method",
        "best test\naccuracy, %",
        "at\ncost",
        "minus plain's\nbest, points",
        *["verdict"] * bool(corrected),
        "reaches plain's\nbest at cost",
        "in seconds",
        "test\nloss",
        "calibration\nerror, %",
        "accuracy, %,\nnoisy weights",
    ] + ["λ_max", "trace"] * with_flatness
    rows = []
    for curve in curves:
        cell = curve.cells[curve.best]
        measured, plain = cell.measured, curve.method == PLAIN
        row: list[Cell | str] = [
            curve.method,
            _interval(cell.accuracy.scaled(100), ".1f"),
            f"{cell.budget:g}",
            "" if plain else _interval(curve.gain.scaled(100), "+.1f"),
            *["" if plain else curve.verdict.verdict] * bool(corrected),
            _reach(curve.reach, ".2f", max(one.budget for one in curve.cells)),
            _reach(curve.reach_seconds, ".3g", math.inf),
            measured["loss"].text(".3f"),
            measured["calibration_error"].scaled(100).text(".1f"),
            measured["noise_accuracy"].scaled(100).text(".1f"),
        ]
        if with_flatness:
            row += [measured[name].text(".3g") for name in ("lambda_max", "trace")]
        rows.append(row)
    align = "llrl" + "l" * bool(corrected) + "lr" + "r" * 5
    return Table(title, headings, rows, _caption(curves, options | dataset, corrected), align)


def _caption(curves: Sequence[Curve], facts: dict[str, Any], corrected: str | None) -> str:
    seeds = facts["seeds"]
    lines = [
        f"cost: gradient evaluations in units of {facts['reference_gradients']}, which is "
        f"{facts['epochs']} epochs of the plain optimizer.",
        f"Each method was tuned at each cost with {facts['trials']} trials, plus "
        f"{facts['more']} each time that a range was widened, on a validation set. So was the "
        f"best cost chosen. Accuracies are means over {seeds} other seeds on the test set.",
        "In parentheses: 95% intervals, which cover the seeds and the finite test set. ± is one "
        "standard error over the seeds.",
        *[
            "verdict: whether the method is better than the plain optimizer, each at its best "
            f"cost, corrected for {corrected} (Holm, 5%)."
        ]
        * bool(corrected),
        "reaches plain's best: where the curve of the test accuracy, interpolated in the logarithm "
        "of the cost, reaches the plain optimizer's test accuracy at its best cost. In seconds: "
        "training alone. A step of each method was timed side by side with the others.",
        f"noisy weights: each weight times 1 + {measuring.NOISE:g}ε with ε ~ N(0, 1), mean of "
        f"{measuring.NOISE_DRAWS} draws.",
    ]
    if facts["data"] == "text":
        lines.append(
            "The predictions of all characters count as independent examples, although those of "
            "neighboring characters are not, so the part of the test set in the intervals is small."
        )
    diverged = [
        f"{curve.method} at cost {cell.budget:g} ({cell.diverged} of {seeds})"
        for curve in curves
        for cell in curve.cells
        if cell.diverged
    ]
    if diverged:
        lines.append(f"Diverged test runs, which count as 0% accuracy: {', '.join(diverged)}.")
    return "\n".join(lines)


def _by_cost(curves: Sequence[Curve]) -> Table:
    budgets = [cell.budget for cell in curves[0].cells]
    rows: list[list[Cell | str]] = [
        [
            curve.method,
            *(
                Cell(_interval(cell.accuracy.scaled(100), ".1f"), i == curve.best)
                for i, cell in enumerate(curve.cells)
            ),
        ]
        for curve in curves
    ]
    return Table(
        "Test accuracy in % by cost",
        ["method", *(f"cost {budget:g}" for budget in budgets)],
        rows,
        "{best} marks the best cost by the validation set.",
    )


def _tuning(curves: Sequence[Curve]) -> Table:
    rows = []
    for curve in curves:
        for cell in curve.cells:
            tuned = cell.tuned
            rows.append(
                [
                    curve.method,
                    f"{cell.budget:g}",
                    f"{cell.steps}",
                    f"{cell.gradients:g}",
                    f"{tuned.trials}",
                    f"{100 * tuned.score.accuracy:.1f}",
                    ", ".join(f"{name} {value:.3g}" for name, value in tuned.point.items()),
                    ", ".join(tuned.at_edge) or "-",
                ]
            )
    return Table(
        "Tuning",
        [
            "method",
            "cost",
            "steps",
            "gradients",
            "trials",
            "validation\naccuracy, %",
            "chosen",
            "at the edge\nof its range",
        ],
        rows,
        align="lrrrrrll",
    )


def _interval(value: Confidence, form: str) -> str:
    low, high = value.interval()
    mean = written(value.mean, form)
    if not math.isfinite(low):
        return mean
    return f"{mean} ({written(low, form)} to {written(high, form)})"


def _reach(reach: Reach, form: str, most: float) -> str:
    """The cost with its interval; infinity, in which the curve does not reach it, as a word."""

    def text(cost: float) -> str:
        if math.isnan(cost):
            return "-"
        if math.isinf(cost):
            return "never" if math.isinf(most) else f"> {most:g}"
        return format(cost, form)

    if math.isnan(reach.low):
        return text(reach.cost)
    return f"{text(reach.cost)} ({text(reach.low)} to {text(reach.high)})"
