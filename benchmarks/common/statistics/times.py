"""The time of a training step relative to that of the plain optimizer."""

import math
from collections.abc import Iterable
from typing import Any

from scipy import stats  # type: ignore[import-untyped]


def time_ratio(runs: Iterable[dict[str, Any]], plain: Iterable[dict[str, Any]]) -> float:
    """Returns the time of a step divided by that of the plain optimizer.

    Each time is that of the fastest epoch of all runs on a machine, because other load on the
    machine can only slow an epoch down. If both methods ran on several machines, the result is the
    geometric mean of the ratios on these machines, and NaN if they share none.

    Args:
      runs: the records of a method, with their `seconds_per_step` and `machine`.
      plain: the records of the plain optimizer.
    """
    fastest, reference = _fastest(runs), _fastest(plain)
    shared = fastest.keys() & reference.keys()
    if not shared:
        return math.nan
    return float(stats.gmean([fastest[machine] / reference[machine] for machine in sorted(shared)]))


def _fastest(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for run in runs:
        machine = run.get("machine") or ""  # older results do not name it
        found[machine] = min(found.get(machine, math.inf), run["seconds_per_step"])
    return found
