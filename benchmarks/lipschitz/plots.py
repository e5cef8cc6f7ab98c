"""The figure of `python -m benchmarks.lipschitz`.

Left: certified accuracy over the radius. Middle: test accuracy against the interval for the
Lipschitz constant. Right: the time per epoch.
"""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.common.plotting import PLAIN as GRAY
from benchmarks.common.plotting import STYLE, new_figure, plain_numbers, save
from benchmarks.lipschitz.methods import METHODS, PLAIN
from benchmarks.lipschitz.options import LipschitzOptions
from benchmarks.lipschitz.summary import MethodSummary, choice
from flatreg.plots import COLORS

FILE = "lipschitz.png"
# The curves of the two projections often coincide; the dashes show the one below.
LINES = {PLAIN: "--", "projection_upper_bound": (0, (2, 2))}
# The middle panel is cut off at these distances from plain training, because networks that hardly
# learned or that lack a useful bound would compress the rest.
SHOWN = 0.12  # of accuracy, below plain training
BEYOND = 5  # times the upper bound of plain training


def draw(folder: pathlib.Path, rows: Sequence[MethodSummary], options: LipschitzOptions) -> None:
    """Writes the figure into the folder.

    If a method has several strengths, the left and the right panel show the one that a sweep would
    choose.
    """
    names = list(dict.fromkeys(row.method.name for row in rows))
    families = {name: [row for row in rows if row.method.name == name] for name in names}
    others = (name for name in names if name != PLAIN)
    colors = {PLAIN: GRAY} | dict(zip(others, COLORS, strict=False))
    chosen = choice(rows)
    best = {
        name: next((row for row in family if row.method.strength == chosen.get(name)), family[0])
        for name, family in families.items()
    }
    with matplotlib.rc_context(STYLE):
        figure = new_figure(14, 5)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 0.8))
        figure.suptitle(
            f"{options.data}, {options.model}: means over the seeds",
            x=0.01,
            ha="left",
            fontsize=9,
        )
        _certified(left, best, colors, options)
        _interval(middle, families, colors, options)
        _times(right, best, colors)
        handles, titles = left.get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside lower center", ncols=5, frameon=False)
        save(figure, folder / FILE)


def _title(row: MethodSummary) -> str:
    method = METHODS[row.method.name]
    return method.title + (f", {method.symbol} = {row.method.strength:g}" if method.symbol else "")


def _certified(
    axes: Axes, best: dict[str, MethodSummary], colors: dict[str, str], options: LipschitzOptions
) -> None:
    radii = options.curve_radii
    for name, row in best.items():
        style = LINES.get(name, "-")
        curve = 100 * np.array(row.curve)
        axes.plot(
            radii, curve, linestyle=style, color=colors[name], linewidth=1.8, label=_title(row)
        )
    axes.set_xlabel("radius r, in the 2-norm")
    axes.set_ylabel(f"certified {options.evaluate_on} accuracy, %")
    axes.set_title("Correct, and provably so within r", weight="bold")
    axes.set_xlim(0, radii[-1])
    axes.set_ylim(0, 101)


def _interval(
    axes: Axes,
    families: dict[str, list[MethodSummary]],
    colors: dict[str, str],
    options: LipschitzOptions,
) -> None:
    for name, rows in families.items():
        color = colors[name]
        family = [row for row in rows if np.isfinite(row.measured["upper"].mean)]
        if not family:  # all strengths diverged
            continue
        accuracy = [100 * row.measured["accuracy"].mean for row in family]
        lower, upper = (
            np.array([row.measured[end].mean for row in family]) for end in ("lower", "upper")
        )
        axes.plot([lower, upper], [accuracy, accuracy], color=color, linewidth=1.2, alpha=0.5)
        axes.scatter(lower, accuracy, s=26, marker="|", color=color, linewidths=1.5)
        axes.scatter(upper, accuracy, s=60, color=color, edgecolors="white", zorder=3)
        axes.plot(upper, accuracy, color=color, linewidth=0.8, linestyle=":")
    plain = families[PLAIN][0].measured
    lowest = min(row.measured["accuracy"].mean for family in families.values() for row in family)
    if lowest < plain["accuracy"].mean - SHOWN:
        axes.set_ylim(bottom=100 * (plain["accuracy"].mean - SHOWN))
    axes.set_xscale("log")
    axes.set_xlim(right=min(axes.get_xlim()[1], BEYOND * plain["upper"].mean))
    plain_numbers(axes.xaxis)
    axes.set_xlabel("Lipschitz constant: from the steepest input found | to the upper bound ●")
    axes.set_ylabel(f"{options.evaluate_on} accuracy, %")
    axes.set_title("Accuracy against the Lipschitz interval", weight="bold")


def _times(axes: Axes, best: dict[str, MethodSummary], colors: dict[str, str]) -> None:
    drawn = {name: row for name, row in best.items() if name != PLAIN}
    for y, (name, row) in enumerate(drawn.items()):
        axes.hlines(y, row.time.low, row.time.high, color=colors[name], linewidth=2)
        axes.scatter(row.time.median, y, s=60, color=colors[name], edgecolors="white", zorder=3)
    axes.axvline(1, color=GRAY, linestyle="--", linewidth=1)
    titles = [METHODS[name].title.replace(", ", ",\n") for name in drawn]
    axes.set_yticks(range(len(drawn)), titles)
    for tick, name in zip(axes.get_yticklabels(), drawn, strict=True):
        tick.set_color(colors[name])
    axes.invert_yaxis()
    axes.set_xlabel("time per epoch / plain")
    axes.set_title("Cost", weight="bold")
