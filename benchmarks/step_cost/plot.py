"""The figure of `python -m benchmarks.step_cost`.

One panel per network and optimizer shows the time of each method's step and its floor.
"""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.common.plotting import PLAIN, STYLE, new_figure, save
from benchmarks.step_cost.costs import NetworkCosts
from flatreg.plots import COLORS

FILE = "step_cost.png"


def draw(folder: pathlib.Path, networks: Sequence[NetworkCosts]) -> None:
    """Writes the figure into the folder."""
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    longest = max(len(costs.steps) for costs in networks)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.5 * columns, rows * (0.9 + 0.24 * longest))
        grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes, costs in zip(grid, networks, strict=False):
            _panel(axes, costs)
        grid[0].legend(frameon=False, loc="upper right")
        for axes in grid[len(networks) :]:
            axes.set_visible(False)
        save(figure, folder / FILE)


def _panel(axes: Axes, costs: NetworkCosts) -> None:
    places = np.arange(len(costs.steps))
    times = [one.time for one in costs.steps]
    floors = [one.gradients for one in costs.steps]
    axes.barh(places, floors, color="#DDDDDD", label="floor: gradients per step")
    axes.hlines(places, [t.low for t in times], [t.high for t in times], color=PLAIN)
    axes.plot([t.median for t in times], places, "o", color=COLORS[0], label="measured time")
    axes.set_yticks(places, [one.name for one in costs.steps])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{costs.model}, {costs.optimizer}", weight="bold")
    axes.set_xlabel("time per step, in gradient steps")
