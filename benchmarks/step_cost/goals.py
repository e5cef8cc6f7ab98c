"""What a step of a method should cost at most, and whether it does."""

import math
from typing import Any, NamedTuple

from benchmarks.step_cost.measuring import GRADIENT, OPTAX_SAM, Interval, ratio

WALL = 1.02  # times the floor: the method's gradients times one gradient step
GRADIENT_METHODS = ("sam", "penalized_gradient", "gam_accelerated")
# The temporary memory is at most this many times the gradient step's, and copies of the parameters.
MEMORY = {
    "sam": (1.1, 1),
    "penalized_gradient": (1.1, 1),
    "gam_accelerated": (1.1, 4),
    "gradient_norm_penalty": (3.5, 3),
    "gradient_regularization": (3.5, 3),
    "gam": (3.5, 3),
}


class Goal(NamedTuple):
    """A goal, its limit, what was measured, and the verdict: met, missed or within noise."""

    method: str
    goal: str
    limit: float
    measured: float
    low: float
    high: float
    verdict: str


def goals(rows: list[dict[str, Any]], parameter_bytes: int) -> list[Goal]:
    """The goals of the methods among the rows of one network and optimizer."""
    named = {row["name"]: row for row in rows}
    gradient, found = named[GRADIENT], []
    for name, row in named.items():
        method = name.partition(":")[0]
        if "+" in name or ":ascent_fraction" in name or ":every" in name:
            continue  # these have no goal of their own
        if method in GRADIENT_METHODS:
            floor = Interval(*(x / row["gradients"] for x in row["time_in_gradients"].values()))
            found.append(_timed(name, "time / floor", WALL, floor))
        if method == "sam":
            beside = ratio(row["seconds"], named[OPTAX_SAM]["seconds"])
            found.append(_timed(name, f"time / {OPTAX_SAM}'s", 1.0, beside))
        if method in MEMORY:
            factor, copies = MEMORY[method]
            limit = factor * gradient["temporary_bytes"] + copies * parameter_bytes
            measured = row["temporary_bytes"]
            verdict = "met" if measured <= limit else "missed"
            goal = f"temporary bytes ≤ {factor:g} × gradient's + {copies} × parameters"
            verdict = verdict if math.isfinite(measured + limit) else "unknown"
            found.append(Goal(name, goal, limit, measured, math.nan, math.nan, verdict))
    return found


def _timed(method: str, goal: str, limit: float, found: Interval) -> Goal:
    """A verdict where the interval is clear of the limit."""
    verdict = "within noise"
    if found.high <= limit:
        verdict = "met"
    elif found.low > limit:
        verdict = "missed"
    return Goal(method, f"{goal} ≤ {limit:g}", limit, *found, verdict)
