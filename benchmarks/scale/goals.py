"""The goals for memory and communication, and whether a compiled program meets them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.scale.arithmetic import PLAIN, lower_bound, passes, shard_bytes

Run = Mapping[str, Any]

MEMORY_GOAL = 1.1  # shards of the parameters that SAM and PGN may need more than the plain step
FRUGAL = ("sam", "penalized_gradient")
# Besides gradients, there are sums of scalars, and of the statistics of BatchNorm.
TOLERANCE = 0.02


class Goal(NamedTuple):
    """A goal and its verdict.

    Attributes:
      network: the network.
      devices: the chips.
      layout: `data` or `fsdp`.
      method: the method.
      goal: what is limited.
      measured: the measured value.
      limit: the largest value that meets the goal.
      met: whether it is met.
    """

    network: str
    devices: str
    layout: str
    method: str
    goal: str
    measured: float
    limit: float
    met: bool


def goals(runs: Sequence[Run]) -> list[Goal]:
    """Returns the goals of all programs.

    A program that is compared with the plain step must fit, and so must the plain step. Every
    program, also one that does not fit, must need at least as much memory as its copies of the
    parameters by arithmetic.
    """
    plain = {_place(run): run for run in runs if run["method"] == PLAIN and run["compiles"]}
    found = []
    for run in runs:
        base, counted = plain.get(_place(run)), passes(run["method"])
        if (bound := lower_bound(run)) is not None:
            share = bound / run["needed_bytes"]
            found.append(Goal(*_place(run), run["method"], "copies / total", share, 1, share <= 1))
        if base is None or counted is None or not run["compiles"] or run["method"] == PLAIN:
            continue
        gradients, products, _ = counted
        limits = []
        if run["method"].partition(":")[0] in FRUGAL:
            more = (run["temporary_bytes"] - base["temporary_bytes"]) / shard_bytes(run)
            limits.append(("memory, shards more than adamw", more, MEMORY_GOAL))
        for name, kinds, times in (
            ("reductions / adamw's", ("all_reduce", "reduce_scatter"), gradients + products),
            ("gathers / adamw's", ("all_gather",), gradients + 2 * products),
        ):
            size, of_plain = moved(run, *kinds), moved(base, *kinds)
            if of_plain:
                limits.append((name, size / of_plain, times * (1 + TOLERANCE)))
        found += [
            Goal(*_place(run), run["method"], name, measured, limit, measured <= limit)
            for name, measured, limit in limits
        ]
    return found


def moved(run: Run, *kinds: str) -> float:
    """Returns the bytes of the collectives of some kinds, over all executions."""
    return sum(run["collectives"][kind]["bytes"] for kind in kinds if run["collectives"].get(kind))


def _place(run: Run) -> tuple[str, str, str]:
    return run["network"], run["devices"], run["layout"]
