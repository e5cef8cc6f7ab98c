"""What a step of each method costs: declared gradients, measured time and memory."""

import pathlib
from typing import Any

from benchmarks.common import results
from benchmarks.common.table import Table
from benchmarks.frontier.records import PLAIN
from benchmarks.page.evidence import Evidence
from benchmarks.step_cost.costs import networks

FOLDER = "step_cost"  # the record of `python -m benchmarks.step_cost`
OPTIMIZER = "sgd"


def table(evidence: Evidence, folder: pathlib.Path) -> Table | None:
    """Returns the table; None without any frontier.

    Args:
      evidence: what the frontiers show.
      folder: the folder with one folder per command.
    """
    methods = list(dict.fromkeys(method for bed in evidence.beds for method in bed.curves))
    if not methods:
        return None
    measured = _of_step(folder / FOLDER)
    rows = []
    for method in methods:
        own = [bed for bed in evidence.beds if method in bed.curves]
        times = [
            f"{bed.step_seconds(method) / bed.step_seconds(PLAIN):.2f}"
            if method in bed.curves
            else "-"
            for bed in evidence.beds
        ]
        cost = max(bed.gradients_per_step(method) for bed in own)
        name = method if method != PLAIN else OPTIMIZER
        row = [method, f"{cost:.2f}", *times]
        for one in measured.values():
            row += one.get(name, ["-", "-"])
        rows.append(row)
    return Table(
        "What a step costs",
        [
            "method",
            "gradients per step",
            *(f"time, {bed.label}" for bed in evidence.beds),
            *(
                f"{what} (step_cost), {network}"
                for network in measured
                for what in ("time", "memory")
            ),
        ],
        rows,
        "gradients per step: the declared cost, which tests count.\n"
        "time: of a step of the method, divided by that of the plain optimizer, both measured side "
        "by side. In the smallest networks, what is not a gradient takes most of the time.\n"
        f"step_cost: time and temporary memory of a step divided by those of a gradient step by "
        f"hand, on larger networks of the same kind ([{FOLDER}]({FOLDER}/table.md)); “-” where "
        "that record lacks the method.",
    )


def _of_step(folder: pathlib.Path) -> dict[str, dict[str, list[str]]]:
    """Time and memory of a step relative to a gradient step, by network and method."""
    if not results.exist(folder):
        return {}
    record: dict[str, Any] = results.read(folder)
    found = {}
    for one in networks(record):
        if one.optimizer != OPTIMIZER:
            continue
        reference = one.steps[0].run["temporary_bytes"]
        found[one.model] = {
            step.name: [
                f"{step.time.median:.2f}",
                f"{step.run['temporary_bytes'] / reference:.2f}",
            ]
            for step in one.steps
        }
    return found
