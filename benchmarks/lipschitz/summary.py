"""Summarizes the runs of each method over the seeds, and answers what the command asks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.statistics.estimates import Estimate, Median, best, estimate, median, number
from benchmarks.lipschitz.methods import METHODS, PLAIN, LipschitzMethod

TOLERATED = 0.01  # of accuracy, which a strength that a sweep chooses may lose
SLOWER = ("input_gradient_penalty", "margin_gradient_penalty")  # claimed to be slower than
FASTER = "spectral_normalization"  # this one
QUANTITIES = ("accuracy", "noise_accuracy", "lower", "upper")  # with one number per run
# More of these is better. A small Lipschitz constant is not an advantage by itself.
BETTER = ("accuracy", "noise_accuracy")


class MethodSummary(NamedTuple):
    """One method over its seeds.

    Attributes:
      method: the method.
      time: the time of an epoch relative to plain training.
      measured: the estimates of `QUANTITIES`.
      certified: the certified accuracy at each radius of the table.
      certified_plainly: the same, by √2 times the Lipschitz constant.
      curve: the mean certified accuracy at each radius of the figure.
      best: the quantities in which no method is better.
    """

    method: LipschitzMethod
    time: Median
    measured: dict[str, Estimate]
    certified: list[Estimate]
    certified_plainly: list[Estimate]
    curve: list[float]
    best: list[str]

    @property
    def success(self) -> float:
        """The mean certified accuracy over the curve, or the accuracy under noise."""
        if METHODS[self.method.name].aim == "noise":
            return self.measured["noise_accuracy"].mean
        return float(np.mean(self.curve))


def summarize(
    runs: list[dict[str, Any]], methods: Sequence[LipschitzMethod]
) -> list[MethodSummary]:
    """Summarizes the runs of each method."""
    measured = {
        method.label: {
            run["seed"]: run["measured"] for run in runs if run["method"] == method.label
        }
        for method in methods
    }
    # The quantities in which methods compete, and how to read them from a run's measurements.
    competing = {name: lambda one, name=name: one[name] for name in BETTER}
    for i in range(len(runs[0]["measured"]["certified"])):
        competing[certified_at(i)] = lambda one, i=i: one["certified"][i]
    winners = {
        name: best(
            {
                label: {seed: number(read(one)) for seed, one in of_seed.items()}
                for label, of_seed in measured.items()
            }
        )
        for name, read in competing.items()
    }
    return [
        _summary(
            method,
            time_ratio(runs, method.label, PLAIN),
            list(measured[method.label].values()),
            [name for name, labels in winners.items() if method.label in labels],
        )
        for method in methods
    ]


def certified_at(i: int) -> str:
    """Returns the name of the certified accuracy at radius number i, for `MethodSummary.best`."""
    return f"certified {i}"


def _summary(
    method: LipschitzMethod, time: Median, measured: list[dict[str, Any]], winning: list[str]
) -> MethodSummary:
    certified, plainly, curve = (
        np.array([one[name] for one in measured], float)
        for name in ("certified", "certified_plainly", "curve")
    )
    return MethodSummary(
        method,
        time,
        {name: estimate([number(one[name]) for one in measured]) for name in QUANTITIES},
        [estimate(values) for values in certified.T],
        [estimate(values) for values in plainly.T],
        curve.mean(0).tolist(),
        winning,
    )


def time_ratio(runs: list[dict[str, Any]], label: str, other: str) -> Median:
    """Returns the time of one method's epochs relative to those of another method.

    The epochs are paired by seed and round, because the speed of a machine drifts during a job.
    """
    seconds = {
        (run["method"], run["seed"], epoch): one["seconds_per_step"]
        for run in runs
        for epoch, one in enumerate(run["epochs"])
    }
    return median(
        [time / seconds[other, *at] for (name, *at), time in seconds.items() if name == label]
    )


def claim(runs: list[dict[str, Any]], summaries: Sequence[MethodSummary]) -> str | None:
    """Says whether an epoch with an input-gradient penalty takes longer than one with `FASTER`.

    Returns None if one of the two was not trained.
    """
    labels = {one.method.name: one.method.label for one in summaries}
    penalty = next((labels[name] for name in SLOWER if name in labels), None)
    if penalty is None or FASTER not in labels:
        return None
    ratio = time_ratio(runs, penalty, labels[FASTER])
    if ratio.low > 1:
        answer = "this holds here"
    elif ratio.high < 1:
        answer = "here it is the other way around"
    else:
        answer = "this is not clear here"
    return (
        "Claim: an epoch with the input-gradient penalty takes longer than an epoch with spectral "
        f"normalization: {answer}. The ratio of their times, median of {ratio.count} pairs of "
        f"epochs: {ratio.median:.2f}, 95% interval {ratio.low:.2f} to {ratio.high:.2f}."
    )


def choice(summaries: Sequence[MethodSummary]) -> dict[str, float]:
    """Returns the best strength of each method.

    It is the strength with the most success among those whose accuracy is at most `TOLERATED` below
    plain training. Methods without such a strength are missing.
    """
    plain = next(one for one in summaries if one.method.name == PLAIN)
    needed = plain.measured["accuracy"].mean - TOLERATED
    chosen: dict[str, MethodSummary] = {}
    for one in summaries:
        name = one.method.name
        if name == PLAIN or one.measured["accuracy"].mean < needed:
            continue
        if name not in chosen or one.success > chosen[name].success:
            chosen[name] = one
    return {name: one.method.strength for name, one in chosen.items()}


def chosen_strengths(strengths: dict[str, float]) -> str:
    """Returns the result of a sweep in words, with options that can be copied."""
    return (
        "Chosen among the strengths that lose at most one percentage point of accuracy against "
        "plain training: the one with the most certified accuracy, averaged over the radii; for "
        "penalties on input gradients, the one with the highest accuracy under noise. --methods "
        f"{','.join(f'{name}:{strength:g}' for name, strength in strengths.items())}"
    )
