"""The tables of `python -m benchmarks.scale`: an overview, and one table per network and slice."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from benchmarks.common.table import Cell, Table
from benchmarks.scale.arithmetic import PLAIN, lower_bound, shard_bytes
from benchmarks.scale.devices import MEMORY
from benchmarks.scale.goals import MEMORY_GOAL, Goal, goals, moved

Run = Mapping[str, Any]

V5E = MEMORY["v5e"]  # bytes
HEADINGS = (
    "method",
    "state,\nGB",
    "temporary,\nGB",
    "total,\nGB",
    "more than\nadamw, shards",
    "alive,\nGB",
    "more alive,\nshards",
    "copies,\nGB",
    "fits",
    "TFLOP",
    "gathered,\nGB",
    "reduced,\nGB",
    "collectives",
    "compilation,\nCPU s",
)
EXPLANATION = """Sizes are per chip in GB of 10⁹ bytes, and counts are per step.
State: parameters, moments and batch, which are there between steps. Temporary: all that exists \
during a step only.
Fits: whether the program fits into the chip, and the share of its memory that is used.
More than adamw: the difference of the temporary memory to that of the plain step, in shards. A \
shard is the part of the float32 parameters on one chip.
Alive: the most bytes of temporary arrays that exist at the same time, and the difference of these \
bytes to those of the plain step. The temporary memory also has the gaps between the arrays. Alive \
includes the vector memory of the chip, which has 0.13 GB. The compiler for CPUs does not say it.
Copies: what a step needs at least by arithmetic, 12 bytes per parameter for parameters and \
moments, and 2 bytes for each further copy that the method cannot avoid.
TFLOP: operations of matrix products and convolutions on one chip. Gathered and reduced: the whole \
arrays in all-gathers, and in all-reduces and reduce-scatters. Collectives: how many are executed. \
All three count the layers, which are a loop in the program.
Where a program does not fit, the total is what the compiler says that it needs.
Compilation, which includes tracing, is in CPU time."""


def line(run: Run) -> str:
    """Returns one line about a program that was compiled."""
    name = f"{run['network']}, {run['devices']}, {run['layout']}, {run['method']}"
    return f"{name}: {_gigabytes(run['needed_bytes'])} GB per chip" + (
        "" if run["compiles"] else ", does not fit"
    )


def tables(record: Mapping[str, Any]) -> list[Table]:
    """Returns the overview, the goals, and one table per network, slice and layout."""
    runs = record["runs"]
    groups = [list(group) for _, group in itertools.groupby(_sorted(runs), _group)]
    return [_overview(groups), _goals(goals(runs)), *map(_details, groups)]


def markdown(record: Mapping[str, Any]) -> str:
    """Returns all tables in Markdown."""
    environment = record["environment"]
    commands = [*record.get("earlier_commands", []), record["command"]]
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("jax", "libtpu") if name in environment
    )
    blocks = [
        "# Memory, operations and communication of training steps for many chips\n",
        "\n".join(f"    {command}" for command in commands) + "\n",
        f"Compiled with {versions}, and not run. {_listed(EXPLANATION)}\n",
    ]
    for table in tables(record):
        if table.rows:
            blocks += [f"**{table.title}**\n", dataclasses.replace(table, title="").markdown()]
    return "\n".join(blocks)


def _listed(text: str) -> str:
    first, *others = text.split("\n")
    return "\n".join([first + "\n", *(f"- {other}" for other in others)])


def _group(run: Run) -> tuple[str, str, str]:
    return run["network"], run["devices"], run["layout"]


def _sorted(runs: list[Run]) -> list[Run]:
    """The runs of each group together, in the order in which the groups began."""
    order = {group: i for i, group in enumerate(dict.fromkeys(map(_group, runs)))}
    return sorted(runs, key=lambda run: order[_group(run)])


def _overview(groups: list[list[Run]]) -> Table:
    methods = list(dict.fromkeys(run["method"] for group in groups for run in group))
    rows = []
    for group in groups:
        found = {run["method"]: run for run in group}
        title = f"{group[0]['network']}, {group[0]['devices']}, {group[0]['layout']}"
        rows.append([Cell(title), *(_total(found.get(method)) for method in methods)])
    return Table(
        "Total memory per chip, GB",
        ["network, devices, layout", *methods],
        rows,
        "Bold: it does not fit into the chip. A TPU v5e has 16 GiB, of which the compiler may use "
        f"{V5E / 2**30:g} GiB, which is {V5E / 1e9:.1f} GB.",
    )


def _total(run: Run | None) -> Cell:
    if run is None:
        return Cell("")
    return Cell(_gigabytes(run["needed_bytes"]), style="" if run["compiles"] else "red")


def _goals(found: list[Goal]) -> Table:
    met = sum(goal.met for goal in found)
    rows: list[list[Cell | str]] = [
        [
            f"{goal.network}, {goal.devices}, {goal.layout}",
            goal.method,
            goal.goal,
            f"{goal.measured:.3f}",
            f"{goal.limit:.3f}",
            Cell("met" if goal.met else "missed", style="green" if goal.met else "red"),
        ]
        for goal in found
    ]
    return Table(
        f"{met} of {len(found)} goals met",
        ("network, devices, layout", "method", "goal", "measured", "limit", "verdict"),
        rows,
        f"Memory: the temporary memory of SAM and PGN is at most {MEMORY_GOAL} shards more than "
        "that of adamw. Reductions: as many bytes as adamw's, times the gradients and "
        "Hessian-vector products of the method. Gathers: the same, but a Hessian-vector product "
        "counts twice, because it gathers the parameters and the vector. Copies / total: what a "
        "step needs by arithmetic is at most what the compiler says.",
        align="lllrrl",
    )


def _details(group: list[Run]) -> Table:
    first = group[0]
    weights, chips = first["parameters"], first["chips"]
    title = (
        f"{first['network']} with {weights / 1e9:.3g} billion parameters, {first['devices']}, "
        f"{first['layout']}, {chips} chips, a shard is {_gigabytes(shard_bytes(first))} GB"
    )
    plain = next((run for run in group if run["method"] == PLAIN), None)
    return Table(title, HEADINGS, [_cells(run, plain) for run in group])


def _cells(run: Run, plain: Run | None) -> list[Cell | str]:
    bound = lower_bound(run)
    copies = "" if bound is None else _gigabytes(bound)
    if not run["compiles"]:
        total = _gigabytes(run["needed_bytes"])
        return [run["method"], "", "", total, *[""] * 3, copies, Cell("no", style="red"), *[""] * 5]
    alive = run.get("alive_bytes")
    return [
        run["method"],
        _gigabytes(run["argument_bytes"]),
        _gigabytes(run["temporary_bytes"]),
        _gigabytes(run["needed_bytes"]),
        _more(run, plain, "temporary_bytes"),
        "" if alive is None else _gigabytes(alive),
        _more(run, plain, "alive_bytes"),
        copies,
        f"yes, {run['needed_bytes'] / run['memory_bytes']:.0%}" if run["memory_bytes"] else "",
        f"{run['flops'] / 1e12:.3g}",
        _gigabytes(moved(run, "all_gather")),
        _gigabytes(moved(run, "all_reduce", "reduce_scatter")),
        _counts(run["collectives"]),
        f"{run['trace_seconds'] + run['compile_seconds']:.0f}",
    ]


def _more(run: Run, plain: Run | None, size: str) -> str:
    """Returns how much larger a size is than that of the plain step, in shards."""
    if plain is None or run is plain or not plain["compiles"] or run.get(size) is None:
        return ""
    return f"{(run[size] - plain[size]) / shard_bytes(run):+.2f}"


def _counts(collectives: Mapping[str, Any]) -> str:
    named = {kind.replace("_", "-"): one for kind, one in collectives.items() if one}
    return ", ".join(f"{one['count']:g} {kind}" for kind, one in named.items())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g}"
