"""A panel for each network and optimizer: how long each method's step takes, and its floor."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.compare.plots import PLAIN, STYLE
from flatreg.plots import COLORS

FILE = "step_cost.png"


def draw(folder: pathlib.Path, networks: list[dict[str, Any]]) -> None:
    """Writes the figure into the folder."""
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    longest = max(len(found["rows"]) for found in networks)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5 * columns, rows * (0.9 + 0.24 * longest)))
        FigureCanvasAgg(figure)
        grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes, found in zip(grid, networks, strict=False):
            _panel(axes, found)
        grid[0].legend(frameon=False, loc="upper right")
        for axes in grid[len(networks) :]:
            axes.set_visible(False)
        figure.savefig(folder / FILE)


def _panel(axes: Any, found: dict[str, Any]) -> None:
    rows = found["rows"]
    places = np.arange(len(rows))
    times = [row["time_in_gradients"] for row in rows]
    floors = [row["gradients"] for row in rows]
    axes.barh(places, floors, color="#DDDDDD", label="floor: the gradients it takes")
    axes.hlines(places, [t["low"] for t in times], [t["high"] for t in times], color=PLAIN)
    axes.plot([t["median"] for t in times], places, "o", color=COLORS[0], label="measured")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{found['model']}, {found['optimizer']}", weight="bold")
    axes.set_xlabel("time of a step, in gradient steps")
