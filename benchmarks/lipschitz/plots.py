"""Certified accuracy over the radius, accuracy against the Lipschitz interval, and time."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.compare.plots import PLAIN as GRAY
from benchmarks.compare.plots import STYLE, plain_numbers
from benchmarks.lipschitz import measuring as _lipschitz_measure
from benchmarks.lipschitz.methods import KINDS, PLAIN
from benchmarks.lipschitz.options import Options
from benchmarks.lipschitz.report import Row, choice
from flatreg.plots import COLORS

FILE = "lipschitz.png"
LINES = {PLAIN: "--", "projection_upper_bound": (0, (2, 2))}  # the other projection shines through
# Networks that hardly learned, or have no useful bound, would squeeze the others together.
SHOWN = 0.12  # accuracy below plain
BEYOND = 5  # times the bound of plain


def draw(folder: pathlib.Path, rows: Sequence[Row], options: Options) -> str:
    """Writes the plot into the folder and returns its name.

    Of a method with several strengths the first and the last panel show the one that was chosen.
    """
    names = list(dict.fromkeys(row.method.name for row in rows))
    families = {name: [row for row in rows if row.method.name == name] for name in names}
    others = (name for name in names if name != PLAIN)
    colors = {PLAIN: GRAY} | dict(zip(others, COLORS, strict=False))
    chosen = choice(rows)
    best = {
        name: next((row for row in of if row.method.strength == chosen.get(name)), of[0])
        for name, of in families.items()
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 5))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 0.8))
        figure.suptitle(
            f"{options.data}, {options.model}; means over the seeds",
            x=0.01,
            ha="left",
            fontsize=9,
        )
        _certified(left, best, colors, options)
        _interval(middle, families, colors, options)
        _times(right, best, colors)
        handles, titles = left.get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(folder / FILE)
    return FILE


def _title(row: Row) -> str:
    kind = KINDS[row.method.name]
    return kind.title + (f", {kind.symbol} = {row.method.strength:g}" if kind.symbol else "")


def _certified(axes: Axes, best: dict[str, Row], colors: dict[str, str], options: Options) -> None:
    radii = _lipschitz_measure.curve_radii(options)
    for name, row in best.items():
        style = LINES.get(name, "-")
        curve = 100 * np.array(row.curve)
        axes.plot(
            radii, curve, linestyle=style, color=colors[name], linewidth=1.8, label=_title(row)
        )
    axes.set_xlabel("radius r, in the 2-norm")
    axes.set_ylabel(f"certified {options.evaluate_on} accuracy, %")
    axes.set_title("Right, and provably so within r", weight="bold")
    axes.set_xlim(0, radii[-1])
    axes.set_ylim(0, 101)


def _interval(
    axes: Axes, families: dict[str, list[Row]], colors: dict[str, str], options: Options
) -> None:
    for name, every in families.items():
        color = colors[name]
        family = [row for row in every if np.isfinite(row.measured["upper"].mean)]
        if not family:  # every strength diverged
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
    axes.set_xlabel("Lipschitz constant: from the steepest input found | to the bound ●")
    axes.set_ylabel(f"{options.evaluate_on} accuracy, %")
    axes.set_title("Accuracy against the Lipschitz interval", weight="bold")


def _times(axes: Axes, best: dict[str, Row], colors: dict[str, str]) -> None:
    drawn = {name: row for name, row in best.items() if name != PLAIN}
    for y, (name, row) in enumerate(drawn.items()):
        axes.hlines(y, row.time.low, row.time.high, color=colors[name], linewidth=2)
        axes.scatter(row.time.median, y, s=60, color=colors[name], edgecolors="white", zorder=3)
    axes.axvline(1, color=GRAY, linestyle="--", linewidth=1)
    titles = [KINDS[name].title.replace(", ", ",\n") for name in drawn]
    axes.set_yticks(range(len(drawn)), titles)
    for tick, name in zip(axes.get_yticklabels(), drawn, strict=True):
        tick.set_color(colors[name])
    axes.invert_yaxis()
    axes.set_xlabel("time of an epoch / plain")
    axes.set_title("Cost", weight="bold")
