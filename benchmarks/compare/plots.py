"""The figures of a comparison: training curves, accuracy against flatness and cost, curvature."""

import itertools
import pathlib
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import methods
from benchmarks.common.plotting import PLAIN, STYLE, new_figure, plain_numbers, save
from benchmarks.common.statistics.estimates import number
from benchmarks.compare.summary import MethodResult
from flatreg.plots import COLORS

MARKERS = "osD^vPXp"


class Series(NamedTuple):
    """What is drawn of one method.

    Attributes:
      row: its summary.
      color: its color.
      runs: the records of its runs that did not diverge.
    """

    row: MethodResult
    color: str
    runs: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The label with the hyperparameters on a second line, and a sum on several lines."""
        return self.row.label.replace("+", "\n+ ").replace(":", "\n", 1).replace(":", " ")

    def measured(self, name: str) -> np.ndarray:
        """Returns a measured quantity: one value per seed."""
        return np.array([number(run["measured"][name]) for run in self.runs])

    def curve(self, name: str) -> np.ndarray:
        """Returns a quantity after each epoch: one row per seed."""
        return np.array([[number(epoch[name]) for epoch in run["curve"]] for run in self.runs])


def draw(
    folder: pathlib.Path,
    runs: list[dict[str, Any]],
    rows: list[MethodResult],
    configuration: dict[str, Any],
) -> list[str]:
    """Writes the figures to a folder and returns their file names.

    Args:
      folder: the folder.
      runs: the records of all runs.
      rows: the summary of each method.
      configuration: the options of the comparison.
    """
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
            save(figure_of(series, configuration), folder / name)
    return list(figures)


def _curves(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """Training loss and evaluation error of each method, with the plain optimizer in gray."""
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
    figure = new_figure(0.8 + 2.6 * columns, 0.3 + 4.0 * blocks)
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
        f"mean over seeds, with a band from minimum to maximum; gray: {configuration['optimizer']}",
    )
    return figure


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str = "") -> None:
    axes.plot(x, values.mean(0), color=color, linewidth=1.6, label=label or None)
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def _flatness(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """Accuracy against λ_max and against cost; a small point per seed, a large point per mean."""
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    _explain(
        figure, configuration, "each small point is one seed, each large point the mean of a method"
    )
    for one, marker in zip(series, itertools.cycle(MARKERS), strict=False):
        accuracy = 100 * one.measured("test_accuracy")
        mean = accuracy.mean()
        for axes, x in (
            (left, one.measured("lambda_max")),
            (right, np.full(len(accuracy), one.row.gradients_per_step)),
        ):
            style: dict[str, Any] = {"color": one.color, "marker": marker}
            axes.scatter(x, accuracy, s=16, alpha=0.5, linewidths=0, **style)
            label = one.label if axes is left else None
            axes.scatter(x.mean(), mean, s=75, edgecolors="white", zorder=3, label=label, **style)
    left.set_xscale("log")
    plain_numbers(left.xaxis)
    left.set_xlabel(r"$\lambda_{\max}$ of the training loss (flatter to the left)")
    left.set_ylabel(f"{configuration['evaluate_on']} accuracy, %")
    left.set_title("Accuracy against flatness", weight="bold")
    right.set_xlabel("gradients per step")
    right.set_title("Accuracy against cost", weight="bold")
    figure.legend(loc="outside right upper", frameon=False, labelcolor="linecolor")
    return figure


def _along(series: list[Series], configuration: dict[str, Any]) -> Figure:
    """λ_max, trace and stability against the step, and λ_max against the training loss.

    The stability is drawn for SGD only. The threshold of AdamW is one for the preconditioned
    Hessian, which is not measured.
    """
    with_threshold = configuration["optimizer"] == "sgd"
    figure = new_figure(14 if with_threshold else 11, 3.6)
    axes = figure.subplots(1, 4 if with_threshold else 3)
    _explain(figure, configuration, "mean over seeds, with a band from minimum to maximum")
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
        if with_threshold:
            last = one.runs[0]["curve"][-1]["step"]
            values = stability(found["lambda_max"], steps, last, configuration)
            _band(axes[3], steps, values, one.color)
    top = r"$\lambda_{\max}$"
    for one_axes, title in zip(axes, (top, "trace", f"{top} at the same loss"), strict=False):
        one_axes.set_title(title, weight="bold")
        one_axes.set_yscale("log")
        one_axes.set_xlabel("training step")
        plain_numbers(one_axes.yaxis)
    axes[2].set_xscale("log")
    axes[2].set_xlabel("training loss of the measured examples")
    plain_numbers(axes[2].xaxis)
    axes[0].legend(frameon=False)
    if with_threshold:
        _draw_threshold(axes[3], 2 + 2 * methods.MOMENTUM)
    return figure


def stability(
    lambda_max: np.ndarray, steps: np.ndarray, last: int, configuration: dict[str, Any]
) -> np.ndarray:
    """Returns λη, the quantity whose threshold for SGD with momentum β is 2 + 2β.

    λ is the largest eigenvalue of the loss with weight decay, and η the learning rate of the step
    before the measurement.

    Args:
      lambda_max: the largest eigenvalues without weight decay, whose last axis is that of `steps`.
      steps: the number of steps before each measurement.
      last: the number of steps of the training.
      configuration: the options of the comparison.
    """
    warmup = configuration["warmup_epochs"] / configuration["epochs"]
    rate = methods.learning_rates(configuration["learning_rate"], warmup, last)
    rates = np.array([rate(step - 1) for step in steps], float)
    return rates * (lambda_max + configuration["weight_decay"])


def _draw_threshold(axes: Axes, threshold: float) -> None:
    """Draws the threshold of the optimizer, above which it diverges on a quadratic loss."""
    axes.axhline(threshold, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"threshold $2+2\\beta={threshold:g}$",
        (0.02, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        va="bottom",
    )
    axes.set_title(r"stability: $\lambda_{\max}\,\eta$", weight="bold")
    axes.set_xlabel("training step")
    axes.set_yscale("log")
    # At the end of the training, the learning rate is zero.
    axes.set_ylim(threshold / 1000, max(3 * threshold, axes.get_ylim()[1]))
    plain_numbers(axes.yaxis)


def _explain(figure: Figure, configuration: dict[str, Any], text: str) -> None:
    """Writes a line above the panels: what was trained, and how to read the panels."""
    noise = configuration["label_noise"]
    trained = f"{configuration['data']}, {configuration['model']}" + (
        f", {noise:.0%} label noise" if noise else ""
    )
    figure.suptitle(f"{trained}: {text}", x=0.01, ha="left", fontsize=9)
