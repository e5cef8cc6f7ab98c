"""The tables that `python -m benchmarks.step_cost` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._step_cost import Interval


def show(found: dict[str, Any], console: Console) -> None:
    """The costs, all but the memory and the compilation in gradient steps by hand; the goals."""
    gradient = found["rows"][0]
    megabytes = found["parameter_bytes"] / 1e6
    title = f"{found['model']}, {found['optimizer']}, parameters {megabytes:.1f} MB"
    columns = ("floor", "FLOPs", "temporary MB", "compiling s", "time", "time / floor")
    table = Table("", *columns, title=title, title_justify="left", box=None)
    for row in found["rows"]:
        time = Interval(**row["time_in_gradients"])
        analyzed = ["", "", ""]
        if "flops" in row:
            analyzed = [
                f"{row['flops'] / gradient['flops']:.2f}",
                f"{row['temporary_bytes'] / 1e6:.1f}",
                f"{row['trace_seconds'] + row['compile_seconds']:.1f}",
            ]
        table.add_row(
            row["name"],
            f"{row['gradients']:g}",
            *analyzed,
            f"{time.median:.2f} [{time.low:.2f}, {time.high:.2f}]",
            f"{time.median / row['gradients']:.3f}",
        )
    console.print(table)
    for goal in found["goals"]:
        unit, number = (1e6, ".1f") if "bytes" in goal["goal"] else (1, ".3f")
        measured, limit = (format(goal[k] / unit, number) for k in ("measured", "limit"))
        sign = {"met": "green", "missed": "red"}.get(goal["verdict"], "yellow")
        console.print(
            f"  [{sign}]{goal['verdict']}[/{sign}]: {goal['method']}, {goal['goal']}: {measured} "
            f"against {limit}"
            + (" MB" if unit > 1 else f" [{goal['low']:.3f}, {goal['high']:.3f}]"),
            highlight=False,
        )
