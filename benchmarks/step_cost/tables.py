"""The tables of `python -m benchmarks.step_cost`: the costs and the goals of each network."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.common.statistics.estimates import Median
from benchmarks.common.table import Cell, Table
from benchmarks.step_cost.costs import NetworkCosts, StepCost, networks
from benchmarks.step_cost.goals import Goal, goals

HEADINGS = (
    "step",
    "floor",
    "FLOPs",
    "temporary\nMB",
    "kernels",
    "compilation,\nseconds",
    "time",
    "time\n/ floor",
)
EXPLANATION = (
    "Floor: the number of gradients that a step evaluates. FLOPs and time are relative to one "
    "gradient step written by hand. Kernels: the fused loops that XLA compiles for the step, on "
    "which its compilation depends. The time is the median over pairs of steps that are adjacent "
    "in time, with its 95% interval. `benchmarks/step_cost/__main__.py` explains missed goals."
)
COLORS = {"met": "green", "missed": "red"}


def of_network(costs: NetworkCosts) -> Sequence[Table]:
    """Returns the table of the costs and the table of the goals."""
    megabytes = costs.parameter_bytes / 1e6
    title = f"{costs.model}, {costs.optimizer}, parameters {megabytes:.1f} MB"
    found = goals(costs.runs, costs.parameter_bytes)
    met = sum(goal.verdict == "met" for goal in found)
    return (
        Table(title, HEADINGS, [_cells(one, costs.steps[0].run) for one in costs.steps]),
        Table(
            f"{costs.model}, {costs.optimizer}: {met} of {len(found)} goals met",
            ("method", "goal", "measured", "limit", "verdict"),
            [_goal(goal) for goal in found],
            align="llrrl",
        ),
    )


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of all networks in Markdown."""
    configuration, environment = record["configuration"], record["environment"]
    found = networks(record)
    models = ", ".join(dict.fromkeys(costs.model for costs in found))
    optimizers = " and ".join(dict.fromkeys(costs.optimizer for costs in found))
    blocks = [
        f"# Cost of a training step of {models} with {optimizers}, "
        f"{configuration['batch_size']} images\n",
        f"    {record['command']}\n",
        f"On {environment['device']}, {environment['platform']}. {EXPLANATION}\n",
    ]
    for table in itertools.chain.from_iterable(map(of_network, found)):
        blocks += [f"**{table.title}**\n", dataclasses.replace(table, title="").markdown()]
    return "\n".join(blocks)


def _cells(one: StepCost, gradient: dict[str, Any]) -> list[str]:
    run = one.run
    analysis = ["", "", "", ""]
    if run.get("flops") is not None:
        analysis = [
            f"{run['flops'] / gradient['flops']:.2f}",
            f"{run['temporary_bytes'] / 1e6:.1f}",
            "" if run.get("kernels") is None else f"{run['kernels']}",
            f"{run['trace_seconds'] + run['compile_seconds']:.1f}",
        ]
    relative = f"{one.time.median / one.gradients:.3f}"
    return [one.name, f"{one.gradients:g}", *analysis, one.time.text(".2f"), relative]


def _goal(goal: Goal) -> list[Cell | str]:
    verdict = Cell(goal.verdict, style=COLORS.get(goal.verdict, "yellow"))
    if "bytes" in goal.goal:
        measured, limit = (f"{value / 1e6:.1f} MB" for value in (goal.measured, goal.limit))
    elif "compilation" in goal.goal:
        measured, limit = (f"{value:.2f}" for value in (goal.measured, goal.limit))
    else:
        time = Median(goal.measured, goal.low, goal.high, 0)
        measured, limit = time.text(".3f"), f"{goal.limit:.3f}"
    return [goal.method, goal.goal, measured, limit, verdict]
