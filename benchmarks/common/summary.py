"""Over the seeds: means, standard errors, time against the plain method, and what is best."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.measuring import Measurement
from benchmarks.common.methods import Method

# Measured quantities that are better large (+1) or small (-1). Train loss and weight norm are
# neither: fitting noisy labels is no merit.
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


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, which is NaN for a single seed."""

    mean: float
    standard_error: float


class Row(NamedTuple):
    """One method over all its seeds; `best` names the quantities in which nothing beats it."""

    label: str
    gradients_a_step: float
    time_ratio: float
    seeds: int
    diverged: int
    measured: dict[str, Estimate]
    best: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The row as results.json keeps it."""
        estimates = {name: estimate._asdict() for name, estimate in self.measured.items()}
        return self._asdict() | {"measured": estimates}


def summarize(runs: list[dict[str, Any]], methods: list[Method], plain: str) -> list[Row]:
    """Summarizes the finished runs of each method.

    Best is the best mean, and every method whose difference from it, paired over the seeds, is
    within one standard error. A method of which a seed diverged is never best.
    """
    by_method = {
        method.label: {run["seed"]: run for run in runs if run["method"] == method.label}
        for method in methods
    }
    measured = {
        label: {seed: run["measured"] for seed, run in of_seed.items() if run["measured"]}
        for label, of_seed in by_method.items()
    }
    best = {name: best_of(name, sign, measured, by_method) for name, sign in BETTER.items()}
    return [
        Row(
            label=method.label,
            gradients_a_step=method.cost,
            time_ratio=time_ratio(
                by_method[method.label].values(), by_method.get(plain, {}).values()
            ),
            seeds=len(by_method[method.label]),
            diverged=len(by_method[method.label]) - len(measured[method.label]),
            measured=_estimates(list(measured[method.label].values())),
            best=[name for name, labels in best.items() if method.label in labels],
        )
        for method in methods
    ]


def time_ratio(runs: Iterable[dict[str, Any]], plain: Iterable[dict[str, Any]]) -> float:
    """The fastest epoch against the plain method's: what else a machine does only delays."""
    fastest, reference = (
        min((epoch["seconds_a_step"] for run in some for epoch in run["curve"]), default=math.nan)
        for some in (runs, plain)
    )
    return fastest / reference


def number(value: float | None) -> float:
    """A number as results.json stores it, where null stands for what is not finite."""
    return math.nan if value is None else value


def _estimates(measurements: list[dict[str, float | None]]) -> dict[str, Estimate]:
    return {
        name: estimate(np.array([number(measured[name]) for measured in measurements]))
        for name in Measurement._fields
    }


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of one value a seed."""
    count = len(values)
    mean = values.mean() if count else math.nan
    error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(mean), float(error))


def best_of(name: str, sign: int, measured: Any, by_method: Any) -> list[str]:
    """The labels that no other beats, of `measured[label][seed][name]`."""
    eligible = {
        label: {seed: sign * number(m[name]) for seed, m in of_seed.items()}
        for label, of_seed in measured.items()
        if of_seed and len(of_seed) == len(by_method[label])
    }
    means = {label: np.mean(list(values.values())) for label, values in eligible.items()}
    means = {label: mean for label, mean in means.items() if math.isfinite(mean)}
    if not means:
        return []
    winner = max(means, key=lambda label: means[label])

    def ties(label: str) -> bool:
        seeds = eligible[winner].keys() & eligible[label].keys()
        behind = np.array([eligible[winner][seed] - eligible[label][seed] for seed in seeds])
        return len(seeds) > 1 and behind.mean() <= estimate(behind).standard_error

    return [label for label in means if label == winner or ties(label)]
