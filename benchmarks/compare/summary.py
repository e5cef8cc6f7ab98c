"""The results of each method over its seeds: means, times and the best values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common.measuring import Measurement
from benchmarks.common.statistics.estimates import Estimate, best, estimate, number
from benchmarks.common.statistics.times import time_ratio

# The measured quantities that are better large (1) or small (-1). Training loss and weight norm are
# missing, because a network that fits wrong labels is not better.
BETTER = {
    "test_accuracy": 1,
    "generalization_gap": -1,
    "gradient_norm": -1,
    "lambda_max": -1,
    "trace": -1,
    "zeroth_order_flatness": -1,
    "first_order_flatness": -1,
    "pacgen": -1,
    "noise_accuracy": 1,
}


class MethodResult(NamedTuple):
    """One method over its seeds.

    Attributes:
      label: the method with its hyperparameters, as in `--methods`.
      gradients_per_step: gradient evaluations per training step.
      time_ratio: the time of a step divided by that of the plain optimizer.
      seeds: the number of runs.
      diverged: the number of runs with a loss that is not finite.
      measured: the estimate of each field of `Measurement`, over the runs that did not diverge.
      best: the quantities in which no other method is better.
    """

    label: str
    gradients_per_step: float
    time_ratio: float
    seeds: int
    diverged: int
    measured: dict[str, Estimate]
    best: list[str]


def summarize(
    runs: Sequence[dict[str, Any]], costs: Mapping[str, float], plain: str
) -> list[MethodResult]:
    """Summarizes the finished runs of each method.

    The best methods are the one with the best mean and those whose difference from it, paired by
    seed, is at most one standard error. A method with a diverged run is never among them.

    Args:
      runs: the records of the finished runs.
      costs: the gradient evaluations per step of each method, by label.
      plain: the label of the plain optimizer, whose time is the unit of time.
    """
    by_method = {
        label: {run["seed"]: run for run in runs if run["method"] == label} for label in costs
    }
    measured = {
        label: {seed: run["measured"] for seed, run in of_seed.items() if run["measured"]}
        for label, of_seed in by_method.items()
    }
    complete = {
        label: of_seed
        for label, of_seed in measured.items()
        if len(of_seed) == len(by_method[label])
    }
    winners = {
        name: best(
            {
                label: {seed: number(one[name]) for seed, one in of_seed.items()}
                for label, of_seed in complete.items()
            },
            sign,
        )
        for name, sign in BETTER.items()
    }
    return [
        MethodResult(
            label=label,
            gradients_per_step=cost,
            time_ratio=time_ratio(by_method[label].values(), by_method.get(plain, {}).values()),
            seeds=len(by_method[label]),
            diverged=len(by_method[label]) - len(measured[label]),
            measured={
                name: estimate([number(one[name]) for one in measured[label].values()])
                for name in Measurement._fields
            },
            best=[name for name, labels in winners.items() if label in labels],
        )
        for label, cost in costs.items()
    ]
