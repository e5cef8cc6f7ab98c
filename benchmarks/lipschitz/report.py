"""The table of `python -m benchmarks.lipschitz`, the strengths of a sweep, and a claim's answer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.summary import Estimate, best_of, estimate, number
from benchmarks.compare.report import Cell, Report, percent
from benchmarks.lipschitz import measuring as _lipschitz_measure
from benchmarks.lipschitz.methods import KINDS, PLAIN, Method
from benchmarks.lipschitz.options import Options

TOLERATED = 0.01  # of accuracy, which a strength of a sweep may cost
CLAIM = ("input_gradient_penalty", "margin_gradient_penalty"), "spectral_normalization"
# All single numbers that are measured of a network, and those where more is better. A small
# constant alone is no merit.
SINGLE = ("accuracy", "noise_accuracy", "lower", "upper")
BETTER = {"accuracy": 1, "noise_accuracy": 1}


class Ratio(NamedTuple):
    """Of the times of two methods' epochs of one round: the median and its 95% interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Row(NamedTuple):
    """A method over its seeds; certified accuracies at the table's radii, and all the curve's."""

    method: Method
    time: Ratio
    measured: dict[str, Estimate]
    certified: list[Estimate]
    certified_plainly: list[Estimate]
    curve: list[float]
    best: list[str]

    @property
    def success(self) -> float:
        """Mean certified accuracy over the radii of the curve, or accuracy under noise."""
        if KINDS[self.method.name].aim == "noise":
            return self.measured["noise_accuracy"].mean
        return float(np.mean(self.curve))

    def as_dict(self) -> dict[str, Any]:
        """The row as results.json keeps it."""
        return self._asdict() | {
            "method": self.method.label,
            "time": self.time._asdict(),
            "measured": {name: value._asdict() for name, value in self.measured.items()},
            "certified": [value._asdict() for value in self.certified],
            "certified_plainly": [value._asdict() for value in self.certified_plainly],
        }


def summarize(runs: list[dict[str, Any]], methods: Sequence[Method]) -> list[Row]:
    """Summarizes the runs of each method."""
    measured = {
        method.label: {
            run["seed"]: run["measured"]
            | {f"certified {i}": value for i, value in enumerate(run["measured"]["certified"])}
            for run in runs
            if run["method"] == method.label
        }
        for method in methods
    }
    radii = range(len(runs[0]["measured"]["certified"]))
    better = BETTER | {f"certified {i}": 1 for i in radii}
    best = {name: best_of(name, sign, measured, measured) for name, sign in better.items()}
    rows = []
    for method in methods:
        own = list(measured[method.label].values())
        certified, plainly, curve = (
            np.array([one[name] for one in own], float)
            for name in ("certified", "certified_plainly", "curve")
        )
        rows.append(
            Row(
                method,
                time_ratio(runs, method.label, PLAIN),
                {n: estimate(np.array([number(one[n]) for one in own])) for n in SINGLE},
                [estimate(values) for values in certified.T],
                [estimate(values) for values in plainly.T],
                curve.mean(0).tolist(),
                [name for name, labels in best.items() if method.label in labels],
            )
        )
    return rows


def time_ratio(runs: list[dict[str, Any]], label: str, other: str) -> Ratio:
    """Paired by seed and epoch, because the speed of a machine drifts in the course of a job."""
    seconds = {
        (run["method"], run["seed"], epoch): one["seconds_a_step"]
        for run in runs
        for epoch, one in enumerate(run["epochs"])
    }
    ratios = [time / seconds[other, *at] for (name, *at), time in seconds.items() if name == label]
    # ranks that the median lies between, by the binomial distribution's normal approximation
    half = min(0.5, 0.98 / math.sqrt(len(ratios)))
    return Ratio(*np.quantile(ratios, (0.5, 0.5 - half, 0.5 + half)).tolist())


def claim(runs: list[dict[str, Any]], rows: Sequence[Row]) -> str | None:
    """Whether an epoch with the input-gradient penalty takes longer, if both were trained."""
    penalties, normalization = CLAIM
    labels = {row.method.name: row.method.label for row in rows}
    penalty = next((labels[name] for name in penalties if name in labels), None)
    if penalty is None or normalization not in labels:
        return None
    ratio = time_ratio(runs, penalty, labels[normalization])
    epochs = sum(len(run["epochs"]) for run in runs if run["method"] == penalty)
    if ratio.low > 1:
        answer = "it does here"
    elif ratio.high < 1:
        answer = "here it is the other way round"
    else:
        answer = "not clear here"
    return (
        "Claim: an epoch with the input-gradient penalty takes longer than one with spectral "
        f"normalization: {answer}. The former's time / the latter's, median of {epochs} pairs of "
        f"epochs: {ratio.median:.2f}, 95% interval {ratio.low:.2f} to {ratio.high:.2f}."
    )


def choice(rows: Sequence[Row]) -> dict[str, float]:
    """The strength of each swept method that reaches its aim best at little cost of accuracy."""
    needed = next(r for r in rows if r.method.name == PLAIN).measured["accuracy"].mean - TOLERATED
    chosen: dict[str, Row] = {}
    for row in rows:
        name = row.method.name
        if name == PLAIN or row.measured["accuracy"].mean < needed:
            continue
        if name not in chosen or row.success > chosen[name].success:
            chosen[name] = row
    return {name: row.method.strength for name, row in chosen.items()}


def report(rows: list[Row], options: Options, dataset: dict[str, Any]) -> Report:
    """Lays the summary out as a table."""
    headings = [
        "method",
        "time / plain",
        f"{options.evaluate_on}\naccuracy, %",
        f"accuracy, %,\nnoise {options.noise:g}",
        "Lipschitz\nconstant ≥",
        "\n≤",
        *(f"certified, %,\nr = {radius:g}" for radius in options.radii),
        *(f"by √2·L,\nr = {radius:g}" for radius in options.radii),
    ]
    title = f"{options.data}, {options.model}: {dataset['train_examples']} training examples"
    return Report(title, headings, [_cells(row) for row in rows], _caption(options))


def _cells(row: Row) -> list[Cell]:
    measured = row.measured
    certified = (
        Cell(percent(value), f"certified {i}" in row.best) for i, value in enumerate(row.certified)
    )
    return [
        Cell(row.method.label),
        Cell(str(row.time)),
        Cell(percent(measured["accuracy"]), "accuracy" in row.best),
        Cell(percent(measured["noise_accuracy"]), "noise_accuracy" in row.best),
        Cell(f"{measured['lower'].mean:.3g}"),
        Cell(f"{measured['upper'].mean:.3g}"),
        *certified,
        *(Cell(f"{100 * value.mean:.1f}") for value in row.certified_plainly),
    ]


def _caption(options: Options) -> str:
    seeds = (
        f"Mean ± standard error over {options.seeds} seeds; * marks the best mean, and what is "
        "within one standard error of it, paired over the seeds."
        if options.seeds > 1
        else "A single seed; * marks the best value."
    )
    return (
        f"{seeds} Time: an epoch against plain's of the same round, without compilation: median "
        "over all rounds and its 95% interval. Lipschitz constant of the logits in the 2-norm: the "
        f"steepest input that {_lipschitz_measure.ASCENT} steps of ascent from "
        f"{_lipschitz_measure.STARTS} examples find, and a certified upper bound. Certified: right "
        "and provably so within r of the input, by the bounds of pairs of logits, and by √2 times "
        f"the network's. Noise: N(0, {options.noise:g}²) on each input, {_lipschitz_measure.DRAWS} "
        "draws. Numbers after the methods: the bound c on every kernel's norm for normalization "
        "and projection, else the weight λ. input_gradient_penalty: λ·mean ‖∇ₓ loss‖² over the "
        "batch (target 0); margin_gradient_penalty: of the label's lead over the best other logit."
    )
