"""What a claim predicts to be above zero, measured: mean and interval over the seeds, verdict."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.claims.experiments import Runs


class Effect(NamedTuple):
    """What a claim says is above zero: mean and 95% t-interval over the seeds."""

    what: str
    mean: float
    low: float
    high: float
    seeds: int


def effect(what: str, values: Any) -> Effect:
    """Of one value a seed; of a single one, without an interval, that value."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        size = float(values.mean()) if count else float("nan")
        return Effect(what, size, float("nan"), float("nan"), count)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5
    mean = float(values.mean())
    return Effect(what, mean, mean - float(half), mean + float(half), count)


def exact(what: str, value: float) -> Effect:
    """Of a number that no seed changes."""
    return Effect(what, float(value), float(value), float(value), 1)


def verdict(effects: Sequence[Effect]) -> str:
    """Of a claim that predicts all of the effects."""
    if any(one.high < 0 for one in effects):
        return "not reproduced"
    return "reproduced" if all(one.low > 0 for one in effects) else "inconclusive"


def gain(runs: Runs, better: str, worse: str, name: str = "test_accuracy") -> np.ndarray:
    """Percentage points of accuracy."""
    return points(runs.of(better, name), runs.of(worse, name))


def points(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """A difference of shares in percentage points."""
    return 100 * (better - worse)


def flatter(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """log₂ of how many times smaller a measure is."""
    return np.log2(runs.of(sharp, name) / runs.of(flat, name))


def correlation(x: Sequence[float], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman's, of one value a setting with those of each seed."""
    return np.array([stats.spearmanr(x, values).statistic for values in np.transpose(rows)])


def flatter_on_the_way(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """log₂ of how many times smaller a measure is, a mean over the moments of training."""
    return np.array(
        [
            np.mean([np.log2(b[name] / a[name]) for a, b in zip(*pair, strict=True)])
            for pair in zip(runs.along(flat), runs.along(sharp), strict=True)
        ]
    )


def flatter_at_same_loss(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """The same over training losses that both runs passed, interpolated between the moments."""
    found = []
    for pair in zip(runs.along(flat), runs.along(sharp), strict=True):
        curves = [np.log2(np.array([[m["loss"], m[name]] for m in run])) for run in pair]
        curves = [curve[curve[:, 0].argsort()] for curve in curves]
        low, high = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
        losses = np.linspace(low, high, 20)
        mine, other = (np.interp(losses, curve[:, 0], curve[:, 1]) for curve in curves)
        found.append(np.mean(other - mine) if low < high else np.nan)
    return np.array(found)
