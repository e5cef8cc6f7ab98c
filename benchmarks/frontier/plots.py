"""The figure of a frontier: one panel per method, and all methods against the time of training."""

import itertools
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from benchmarks.common.plotting import PLAIN as GRAY
from benchmarks.common.plotting import STYLE, new_figure, plain_numbers, save
from benchmarks.frontier.summary import Curve
from flatreg.plots import COLORS

FILE = "frontier.png"
COLUMNS = 5
SHOWN = 0.04  # how far below the plain optimizer's best accuracy the panels reach
LETTERS = 14  # of the title per inch
Style = dict[str, Any]


def draw(folder: pathlib.Path, curves: Sequence[Curve], options: dict[str, Any]) -> str:
    """Writes the figure to a folder and returns its file name.

    Args:
      folder: the folder.
      curves: one per method, the plain optimizer first.
      options: the options of the frontier.
    """
    plain, *others = curves
    columns = min(COLUMNS, math.ceil((len(others) + 1) / 2))
    rows = math.ceil((len(others) + 1) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.3 * columns + 0.4, 2.1 * rows + 0.8)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
        characters = int(LETTERS * figure.get_figwidth())
        title = textwrap.fill(_title(options), characters)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        colors = itertools.cycle(COLORS)
        styles: list[Style] = [{"color": GRAY, "linestyle": "--"}]
        styles += [{"color": next(colors)} for _ in others]
        for axes, curve, style in zip(panels, others, styles[1:], strict=False):
            for one, look in ((plain, styles[0]), (curve, style)):
                budgets = [cell.budget for cell in one.cells]
                _line(axes, budgets, one, look)
                _band(axes, budgets, one, look)
            axes.set_xscale("log")
            axes.set_xticks(budgets, [f"{budget:.3g}" for budget in budgets], fontsize=7)
            axes.minorticks_off()
            axes.set_title(curve.method, color=style["color"], weight="bold")
        time, *unused = panels[len(others) :]
        for curve, style in zip(curves, styles, strict=True):
            _line(time, [cell.seconds for cell in curve.cells], curve, style)
        time.set_xscale("log")
        plain_numbers(time.xaxis)
        time.set_title("all, by seconds of training", weight="bold")
        for axes in unused:
            axes.set_axis_off()
        time.set_ylim(_limits(curves))
        figure.supylabel("test accuracy, %", fontsize=9)
        figure.supxlabel(
            f"gradients, in units of {options['epochs']} epochs of the plain optimizer", fontsize=9
        )
        save(figure, folder / FILE)
    return FILE


def _title(options: dict[str, Any]) -> str:
    noise = options["label_noise"]
    about = f"{options['data']}, {options['model']}"
    about += f", {noise:.0%} label noise" if noise else ""
    return (
        f"{about}: mean test accuracy of each method and, dashed, of the plain optimizer. "
        "Bands: 95% intervals over seeds and test examples. Each point was tuned on a validation "
        "set. Ring: the best cost by that set. Points far below are cut off."
    )


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """The limits of all panels in %, which leave out what is far below the plain optimizer."""
    plain = curves[0]
    accuracies = [cell.accuracy for curve in curves for cell in curve.cells]
    shown = [x for one in accuracies for x in (one.mean, *one.interval())]
    shown = [x for x in shown if math.isfinite(x)]  # One seed alone has no interval.
    low = max(min(shown), plain.cells[plain.best].accuracy.mean - SHOWN)
    low = min(low, *(cell.accuracy.mean for cell in plain.cells))
    high = max(shown)
    margin = 0.05 * (high - low)
    return 100 * (low - margin), 100 * (high + margin)


def _line(axes: Axes, x: Sequence[float], curve: Curve, style: Style) -> None:
    means = [100 * cell.accuracy.mean for cell in curve.cells]
    axes.plot(x, means, marker="o", markersize=2.5, linewidth=1.4, **style)
    ring = style | {"markerfacecolor": "none", "linestyle": "none"}
    axes.plot(x[curve.best], means[curve.best], marker="o", markersize=8, **ring)


def _band(axes: Axes, x: Sequence[float], curve: Curve, style: Style) -> None:
    bands = [cell.accuracy.scaled(100).interval() for cell in curve.cells]
    low, high = zip(*bands, strict=True)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
