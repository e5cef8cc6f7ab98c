"""The tables of `python -m benchmarks.step_cost`: printed, and as Markdown from the same cells."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.step_cost.measuring import Interval

COLUMNS = ("", "floor", "FLOPs", "temporary MB", "compiling s", "time", "time / floor")
COLORS = {"met": "green", "missed": "red"}


def show(found: dict[str, Any], console: Console) -> None:
    """The costs, all but the memory and the compilation in gradient steps by hand; the goals."""
    table = Table(*COLUMNS, title=_title(found), title_justify="left", box=None)
    for cells in _rows(found):
        table.add_row(*cells)
    console.print(table)
    for goal in found["goals"]:
        color = COLORS.get(goal["verdict"], "yellow")
        text = f"{goal['method']}, {_goal(goal)}"
        console.print(f"  [{color}]{goal['verdict']}[/{color}]: {text}", highlight=False)


def markdown(record: dict[str, Any]) -> str:
    """All networks of a run, under the command that made it."""
    networks = record["networks"]
    examples = record["configuration"]["batch_size"]
    lines = [
        f"# Cost of a step, {examples} images: {', '.join({n['model']: 0 for n in networks})}",
        "",
        f"    {record['command']}",
        "",
        f"On {record['environment']['device']}, {record['environment']['platform']}. Floor: the "
        "gradients that a method takes. FLOPs and time in gradient steps by hand, the median over "
        "neighbors in time with its 95% interval. What a missed goal comes from: the head of "
        "`benchmarks/step_cost.py`.",
    ]
    for found in networks:
        goals = [goal for goal in found["goals"] if goal["verdict"] != "met"]
        lines += [
            "",
            f"**{_title(found)}**",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"|---|{'---:|' * (len(COLUMNS) - 1)}",
            *(f"| {' | '.join(cells)} |" for cells in _rows(found)),
            "",
            f"{len(found['goals']) - len(goals)} of {len(found['goals'])} goals met."
            + "".join(f" *{g['verdict'].capitalize()}*: {g['method']}, {_goal(g)}." for g in goals),
        ]
    return "\n".join([*lines, ""])


def _title(found: dict[str, Any]) -> str:
    megabytes = found["parameter_bytes"] / 1e6
    return f"{found['model']}, {found['optimizer']}, parameters {megabytes:.1f} MB"


def _rows(found: dict[str, Any]) -> list[list[str]]:
    gradient, rows = found["rows"][0], []
    for row in found["rows"]:
        time = Interval(**row["time_in_gradients"])
        analyzed = ["", "", ""]
        if "flops" in row:
            analyzed = [
                f"{row['flops'] / gradient['flops']:.2f}",
                f"{row['temporary_bytes'] / 1e6:.1f}",
                f"{row['trace_seconds'] + row['compile_seconds']:.1f}",
            ]
        interval = f"{time.median:.2f} ({time.low:.2f} to {time.high:.2f})"
        relative = f"{time.median / row['gradients']:.3f}"
        rows.append([row["name"], f"{row['gradients']:g}", *analyzed, interval, relative])
    return rows


def _goal(goal: dict[str, Any]) -> str:
    unit, number = (1e6, ".1f") if "bytes" in goal["goal"] else (1, ".3f")
    measured, limit = (format(goal[k] / unit, number) for k in ("measured", "limit"))
    spread = " MB" if unit > 1 else f" ({goal['low']:.3f} to {goal['high']:.3f})"
    return f"{goal['goal']}: {measured} against {limit}{spread}"
