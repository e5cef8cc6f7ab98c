"""The figure of a frontier: test accuracy against compute and against time."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from benchmarks.common.plotting import PLAIN as GRAY
from benchmarks.common.plotting import STYLE, new_figure, plain_numbers
from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.summary import Curve, seconds
from flatreg.plots import COLORS

MARKERS = "osD^vPX*<>"
FILE = "frontier.png"
RANGE = 10  # points of accuracy that the figure shows, because the methods differ at the top


def draw(folder: pathlib.Path, curves: Sequence[Curve], options: dict[str, Any]) -> str:
    """Writes the figure to a folder and returns its file name.

    Args:
      folder: the folder.
      curves: one per method, the plain optimizer first.
      options: the options of the frontier.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11, 4.8)
        left, right = figure.subplots(1, 2, sharey=True)
        noise = options["label_noise"]
        about = f"{options['data']}, {options['model']}"
        about += f", {noise:.0%} label noise" if noise else ""
        figure.suptitle(
            f"{about}: mean test accuracy, with 95% intervals over seeds and test examples. Each "
            "point\nwas tuned on a validation set. Ring: the best cost by that set. Straight line: "
            f"the plain optimizer\nthere. Accuracies more than {RANGE} points below the best are "
            "cut off.",
            x=0.01,
            ha="left",
            fontsize=9,
        )
        # More methods than colors: the second round is dashed.
        colors = itertools.product(("-", (0, (4, 2))), COLORS)
        markers = itertools.cycle(MARKERS)
        for curve in curves:
            line, color = ("-", GRAY) if curve.method == PLAIN else next(colors)
            style = {"color": color, "marker": next(markers), "linestyle": line}
            budgets = [cell.budget for cell in curve.cells]
            _draw(left, budgets, curve, style, label=curve.method)
            _draw(right, seconds(curve.cells), curve, style, label=None)
        plain = curves[0]
        for axes in (left, right):
            axes.axhline(
                100 * plain.cells[plain.best].accuracy.mean,
                color=GRAY,
                linestyle="--",
                linewidth=0.9,
            )
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)
        left.set_xticks([cell.budget for cell in plain.cells], minor=False)
        left.minorticks_off()
        left.set_xlabel(f"gradients, in units of {options['epochs']} epochs of the plain optimizer")
        left.set_ylabel("test accuracy, %")
        left.set_title("Accuracy against compute", weight="bold")
        right.set_xlabel("seconds of training")
        right.set_title("Accuracy against measured time", weight="bold")
        means = [100 * cell.accuracy.mean for curve in curves for cell in curve.cells]
        left.set_ylim(max(min(means) - 2, max(means) - RANGE), min(100, left.get_ylim()[1]))
        figure.legend(loc="outside right upper", frameon=False, labelcolor="linecolor")
        figure.savefig(folder / FILE)
    return FILE


def _draw(
    axes: Axes, x: Sequence[float], curve: Curve, style: dict[str, Any], label: str | None
) -> None:
    means = [100 * cell.accuracy.mean for cell in curve.cells]
    bands = [cell.accuracy.scaled(100).interval() for cell in curve.cells]
    axes.plot(x, means, linewidth=1.6, markersize=4, label=label, **style)
    axes.fill_between(
        x,
        [low for low, _ in bands],
        [high for _, high in bands],
        color=style["color"],
        alpha=0.12,
        linewidth=0,
    )
    axes.plot(
        x[curve.best],
        means[curve.best],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        color=style["color"],
    )
