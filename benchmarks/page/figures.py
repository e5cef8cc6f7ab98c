"""The figures at the top of the page: all frontiers, and a forest plot of the verdicts."""

import itertools
import pathlib
import textwrap

import matplotlib
from matplotlib.lines import Line2D

from benchmarks.common.plotting import PLAIN as GRAY
from benchmarks.common.plotting import STYLE, new_figure, save
from benchmarks.common.statistics import questions
from benchmarks.frontier.records import PLAIN
from benchmarks.page.evidence import AVERAGED, GAIN, SAM, Asked, Evidence, one_gradient
from flatreg.plots import COLORS

FRONTIERS, FOREST = "frontiers.png", "forest.png"
PANELS_IN_A_ROW = 2
CHARACTERS = 50  # of a title that fits above a panel
FACES = {questions.FOR: COLORS[0], questions.AGAINST: COLORS[1]}


def draw(folder: pathlib.Path, evidence: Evidence) -> list[str]:
    """Writes the figures to a folder and returns their names: nothing without a frontier."""
    if not evidence.beds:
        return []
    with matplotlib.rc_context(STYLE):
        _frontiers(folder / FRONTIERS, evidence)
        _forest(folder / FOREST, evidence)
    return [FRONTIERS, FOREST]


def names(evidence: Evidence) -> list[str]:
    """Returns the names of the figures that `draw` writes."""
    return [FRONTIERS, FOREST] if evidence.beds else []


def _frontiers(file: pathlib.Path, evidence: Evidence) -> None:
    """Accuracy against compute on every bed, for the methods that the sentences are about."""
    beds = evidence.beds
    wanted = [PLAIN, AVERAGED, SAM, "sam:ascent_fraction=0.1"]
    wanted += dict.fromkeys(method for bed in beds for method in one_gradient(bed))
    colors = dict(zip(wanted, [GRAY, "#111111", *COLORS], strict=False))
    markers = dict(zip(wanted, itertools.cycle("osD^vPX*"), strict=False))
    columns = min(PANELS_IN_A_ROW, len(beds))
    rows = -(-len(beds) // columns)
    figure = new_figure(4.6 * columns, 3.1 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, bed in zip(grid, beds, strict=False):
        for method in [one for one in wanted if one in bed.curves]:
            cells = bed.curves[method].cells
            x = [cell.budget for cell in cells]
            y = [100 * cell.accuracy.mean for cell in cells]
            style = {"color": colors[method], "marker": markers[method]}
            axes.plot(x, y, linewidth=1.4, markersize=4, **style)
            best = bed.curves[method].best
            axes.plot(x[best], y[best], "o", ms=9, mfc="none", color=colors[method])
        axes.axhline(100 * bed.best(PLAIN).accuracy.mean, color=GRAY, ls="--", lw=0.9)
        axes.set_xscale("log")
        axes.set_xticks(bed.budgets, [f"{budget:g}" for budget in bed.budgets])
        axes.minorticks_off()
        axes.set_title(bed.label, weight="bold")
        # The methods that matter lie close together at the top.
        shown = [bed.curves[method] for method in wanted if method in bed.curves]
        top = max(100 * cell.accuracy.mean for curve in shown for cell in curve.cells)
        low = min(100 * cell.accuracy.mean for cell in bed.curves[PLAIN].cells)
        axes.set_ylim(min(low, top - 4) - 1, top + 0.5)
    for axes in grid[len(beds) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("test accuracy, %")
    for axes in grid[max(0, len(beds) - columns) : len(beds)]:
        axes.set_xlabel("cost, in units of the reference")
    handles = [
        Line2D([], [], color=colors[m], marker=markers[m], label=m, markersize=4)
        for m in wanted
        if any(m in bed.curves for bed in beds)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        "Mean test accuracy against gradients, every point tuned on a validation set. Ring: the "
        "best cost by that set.\nDashed: the plain optimizer there. Points far below are cut off. "
        "Intervals are in the figure of each bed.",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    save(figure, file)


def _forest(file: pathlib.Path, evidence: Evidence) -> None:
    """The gain of each method over the tuned plain optimizer, one panel per bed."""
    beds = evidence.beds
    methods = [[method for method in bed.curves if method != PLAIN] for bed in beds]
    columns = min(PANELS_IN_A_ROW, len(beds))
    starts = range(0, len(beds), columns)
    lines = [max(map(len, methods[start : start + columns])) for start in starts]
    figure = new_figure(5.3 * columns, 0.6 * len(lines) + 0.19 * sum(lines) + 0.6)
    ratios = {"height_ratios": [2 + count for count in lines]}
    grid = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw=ratios).ravel()
    for i, (axes, bed) in enumerate(zip(grid, beds, strict=False)):
        for position, method in enumerate(methods[i]):
            gain = bed.gain(method)
            verdict = evidence.verdicts[Asked(GAIN, bed.folder, method)].verdict
            color = FACES.get(verdict, GRAY)
            face = color if verdict in FACES else "white"
            axes.plot(gain.interval(), [position] * 2, color=color, lw=1.4)
            axes.plot(gain.mean, position, "o", ms=5, color=color, mfc=face)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_title(textwrap.fill(bed.label, CHARACTERS), weight="bold")
        axes.locator_params(axis="x", nbins=6)
        axes.set_yticks(range(len(methods[i])), methods[i])
        axes.set_ylim(lines[i // columns] - 0.5, -0.5)
    for axes in grid[len(beds) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(beds) - columns) : len(beds)]:
        axes.set_xlabel("points of test accuracy")
    figure.suptitle(
        "Gain over the tuned plain optimizer, each method at its best cost, with 95% intervals. "
        f"Filled: better (blue) or worse (red)\nafter Holm's correction over all "
        f"{evidence.count} verdicts of the page. Hollow: undecided.",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    save(figure, file)
