"""The goals for the cost of a step of each method, and whether a measurement meets them.

Time: a step takes at most `WALL` times its floor. SAM with its test for NaN and infinity takes at
most 1.05 times as long as Optax's SAM with one, and without it at most 1.02 times as long as
Optax's SAM (`TIMES`).
Memory: a step needs at most the temporary memory in `MEMORY`.
Compilation: tracing and compiling a step takes at most `COMPILATION` times as long as another's.
"""

import math
from typing import Any, NamedTuple

from benchmarks.common.statistics.estimates import Median
from benchmarks.step_cost.timing import (
    GRADIENT,
    GUARDED_OPTAX_SAM,
    OPTAX_SAM,
    UNGUARDED_SAM,
    ratio,
)

WALL = 1.02  # times the floor, which is the method's number of gradients times one gradient step
TIMES = {"sam": (GUARDED_OPTAX_SAM, 1.05), UNGUARDED_SAM: (OPTAX_SAM, 1.02)}
PLAIN = "plain"
GRADIENT_METHODS = ("sam", "penalized_gradient", "gam_accelerated")
# At most this many times the temporary memory of the gradient step, plus copies of the parameters.
MEMORY = {
    "sam": (1.1, 1),
    "penalized_gradient": (1.1, 1),
    "gam_accelerated": (1.1, 4),
    "gradient_norm_penalty": (3.5, 3),
    "gradient_regularization": (3.5, 3),
    "gam": (3.5, 3),
}
COMPILATION = {  # of the first step over that of the second; PLAIN is the step without a method
    (PLAIN, GRADIENT): 1.2,
    ("sam", OPTAX_SAM): 1.2,
    ("gam_accelerated", "sam"): 2.2,
}


class Goal(NamedTuple):
    """A goal and its verdict.

    Attributes:
      method: the method, with its settings.
      goal: what is limited.
      limit: the largest value that meets the goal.
      measured: the measured value; the median for a time.
      low: the lower end of the 95% interval of a time; NaN for memory and compilation.
      high: the upper end of the interval.
      verdict: `met`, `missed`, `within noise` if the interval contains the limit or is unknown, or
        `unknown` if the memory is unknown.
    """

    method: str
    goal: str
    limit: float
    measured: float
    low: float
    high: float
    verdict: str


def goals(runs: list[dict[str, Any]], parameter_bytes: int) -> list[Goal]:
    """Returns the goals of all methods among the runs of one network and optimizer.

    A sum of methods and a method with `ascent_fraction` or `every` does not have goals.

    Args:
      runs: the contestants, with their `name`, `gradients`, `temporary_bytes` and `seconds`.
      parameter_bytes: the memory of the parameters.
    """
    named = {run["name"]: run for run in runs}
    gradient, found = named[GRADIENT], []
    for name, run in named.items():
        method = name.partition(":")[0]
        if "+" in name or ":ascent_fraction" in name or ":every" in name:
            continue
        if method in GRADIENT_METHODS:
            time = ratio(run["seconds"], gradient["seconds"])
            of_floor = Median(
                time.median / run["gradients"],
                time.low / run["gradients"],
                time.high / run["gradients"],
                time.count,
            )
            found.append(_timed(name, "time / floor", WALL, of_floor))
        other, limit = TIMES.get(name, (None, 0.0))
        if other in named:
            of_other = ratio(run["seconds"], named[other]["seconds"])
            found.append(_timed(name, f"time / {other}'s", limit, of_other))
        if method in MEMORY:
            factor, copies = MEMORY[method]
            limit = factor * gradient["temporary_bytes"] + copies * parameter_bytes
            goal = f"temporary bytes ≤ {factor:g} × gradient's + {copies} × parameters"
            found.append(_exact(name, goal, limit, run["temporary_bytes"]))
    return found + _compilation(runs)


def _compilation(runs: list[dict[str, Any]]) -> list[Goal]:
    """Returns the goals for the time of compilation, between pairs of steps that are both there."""
    seconds = {
        run["name"]: run["trace_seconds"] + run["compile_seconds"]
        for run in runs
        if run.get("compile_seconds") is not None  # as it is for PyTorch
    }
    found = []
    for (name, other), limit in COMPILATION.items():
        # The step without a method has the name of its optimizer.
        own = runs[0].get("optimizer", "") if name == PLAIN else name
        if own in seconds and other in seconds:
            goal = f"compilation / {other}'s ≤ {limit:g}"
            found.append(_exact(own, goal, limit, seconds[own] / seconds[other]))
    return found


def _timed(method: str, goal: str, limit: float, found: Median) -> Goal:
    """Returns a goal for a time, with a verdict if the interval is clear of the limit."""
    verdict = "within noise"
    if found.high <= limit:
        verdict = "met"
    elif found.low > limit:
        verdict = "missed"
    median, low, high, _ = found
    return Goal(method, f"{goal} ≤ {limit:g}", limit, median, low, high, verdict)


def _exact(method: str, goal: str, limit: float, measured: float) -> Goal:
    """Returns a goal for a number that is measured once."""
    verdict = "met" if measured <= limit else "missed"
    verdict = verdict if math.isfinite(measured + limit) else "unknown"
    return Goal(method, goal, limit, measured, math.nan, math.nan, verdict)
