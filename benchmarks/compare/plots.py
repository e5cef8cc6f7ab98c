"""The plots: training curves with a band over the seeds, accuracy against flatness and cost, and
curvature along training where it was measured.
"""

import pathlib
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.common.labels import Label, place
from benchmarks.common.summary import Row, number
from flatreg.plots import COLORS

PLAIN = "#555555"
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EBEBEB",
    "grid.linewidth": 0.7,
    "savefig.dpi": 160,
}


class Series(NamedTuple):
    """What is drawn of one method: its runs that did not diverge."""

    row: Row
    color: str
    runs: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The method's name, and its hyperparameters on a second line; a sum on several."""
        return self.row.label.replace("+", "\n+ ").replace(":", "\n", 1).replace(":", " ")

    def measured(self, name: str) -> np.ndarray:
        """A measured quantity, one value a seed."""
        return np.array([number(run["measured"][name]) for run in self.runs])

    def curve(self, name: str) -> np.ndarray:
        """A quantity after each epoch, one row a seed."""
        return np.array([[number(epoch[name]) for epoch in run["curve"]] for run in self.runs])


def draw(
    folder: pathlib.Path, runs: list[dict[str, Any]], rows: list[Row], configuration: dict[str, Any]
) -> list[str]:
    """Writes the plots of what was measured into the folder and returns their names."""
    plain = configuration["optimizer"]
    others = [row.label for row in rows if row.label != plain]
    colors = {plain: PLAIN} | {label: COLORS[i % len(COLORS)] for i, label in enumerate(others)}
    series = [
        Series(row, colors[row.label], kept)
        for row in rows
        if (kept := [run for run in runs if run["method"] == row.label and run["measured"]])
    ]
    if not series:  # everything diverged
        return []
    figures = {"curves.png": _curves}
    if configuration["flatness"] != "no":
        figures["flatness.png"] = _flatness
    if configuration["flatness"] == "along":
        figures["along.png"] = _along
    with matplotlib.rc_context(STYLE):
        for name, figure_of in figures.items():
            figure_of(series, configuration).savefig(folder / name)
    return list(figures)


def _curves(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """Two panels a method, one above the other, with the plain optimizer's curves in gray."""
    plain = [one for one in series if one.row.label == configuration["optimizer"]]
    others = [one for one in series if one not in plain] or plain
    x = "gradients" if configuration["budget"] == "gradients" else "step"
    quantities = {
        "training loss": lambda one: one.curve("train_loss"),
        f"{configuration['evaluate_on']} error, %": lambda one: (
            100 - 100 * one.curve("test_accuracy")
        ),
    }
    columns = min(len(others), 4)
    blocks = -(-len(others) // columns)
    figure = _figure(0.8 + 2.6 * columns, 0.3 + 4.0 * blocks)
    shared: dict[str, Axes] = {}
    for i, one in enumerate(others):
        block, column = divmod(i, columns)
        for below, (name, values) in enumerate(quantities.items()):
            cell = (2 * block + below) * columns + column + 1
            axes = figure.add_subplot(
                2 * blocks, columns, cell, sharex=shared.get(name), sharey=shared.get(name)
            )
            shared.setdefault(name, axes)
            for drawn in (*plain, one):
                _band(axes, drawn.curve(x)[0], values(drawn), drawn.color)
            axes.set_yscale("log")
            axes.tick_params(labelleft=column == 0, labelbottom=below == 1)
            if column == 0:
                axes.set_ylabel(name)
            if below:
                axes.set_xlabel("gradient evaluations" if x == "gradients" else "training step")
            else:
                axes.set_title(one.label, color=one.color, weight="bold")
    for axes in shared.values():
        plain_numbers(axes.yaxis)
    _explain(
        figure,
        configuration,
        f"mean over seeds, band from the lowest to the highest; gray: {configuration['optimizer']}",
    )
    return figure


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str = "") -> None:
    axes.plot(x, values.mean(0), color=color, linewidth=1.6, label=label or None)
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def _flatness(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """A small point a seed, a large one for the mean."""
    figure = _figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    _explain(figure, configuration, "small points are seeds, large ones their means")
    labels: dict[Axes, list[Label]] = {left: [], right: []}
    for one in series:
        accuracy = 100 * one.measured("test_accuracy")
        mean = accuracy.mean()
        for axes, x in (
            (left, one.measured("lambda_max")),
            (right, np.full(len(accuracy), one.row.gradients_a_step)),
        ):
            axes.scatter(x, accuracy, s=16, color=one.color, alpha=0.5, linewidths=0)
            axes.scatter(x.mean(), mean, s=75, color=one.color, edgecolors="white", zorder=3)
            labels[axes].append(Label(one.label, one.color, (x.mean(), mean)))
    left.set_xscale("log")
    plain_numbers(left.xaxis)
    left.set_xlabel(r"$\lambda_{\max}$ of the training loss (flatter to the left)")
    left.set_ylabel(f"{configuration['evaluate_on']} accuracy, %")
    left.set_title("Accuracy against flatness", weight="bold")
    right.set_xlabel("gradients a step")
    right.set_title("Accuracy against cost", weight="bold")
    for axes in (left, right):
        axes.margins(0.12)
        place(axes, labels[axes])
    return figure


def _along(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """λ_max and trace over the steps, and λ_max over the loss at which it was measured."""
    figure = _figure(11, 3.6)
    axes = figure.subplots(1, 3)
    _explain(figure, configuration, "mean over seeds, band from the lowest to the highest")
    for one in series:
        points = [[e for e in run["curve"] if "curvature" in e] for run in one.runs]
        found = {
            name: np.array([[number(e["curvature"][name]) for e in run] for run in points])
            for name in ("lambda_max", "trace", "loss")
        }
        steps = np.array([e["step"] for e in points[0]])
        _band(axes[0], steps, found["lambda_max"], one.color, one.row.label)
        _band(axes[1], steps, found["trace"], one.color)
        axes[2].plot(
            found["loss"].mean(0), found["lambda_max"].mean(0), "o-", color=one.color, markersize=3
        )
    top = r"$\lambda_{\max}$"
    for one_axes, title in zip(axes, (top, "trace", f"{top} at the same loss"), strict=True):
        one_axes.set_title(title, weight="bold")
        one_axes.set_yscale("log")
        one_axes.set_xlabel("training step")
        plain_numbers(one_axes.yaxis)
    axes[2].set_xscale("log")
    axes[2].set_xlabel("training loss of the examples measured")
    plain_numbers(axes[2].xaxis)
    axes[0].legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot, which would want a screen where there is one."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _explain(figure: Figure, configuration: dict[str, Any], text: str) -> None:
    """One line above the panels: what was trained, and how to read them."""
    noise = configuration["label_noise"]
    trained = f"{configuration['data']}, {configuration['model']}" + (
        f", {noise:.0%} label noise" if noise else ""
    )
    figure.suptitle(f"{trained}: {text}", x=0.01, ha="left", fontsize=9)


def plain_numbers(axis: Axis) -> None:
    """Ticks of a log axis at powers of ten, over few of them also in between, written plainly."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
