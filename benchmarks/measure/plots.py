"""The figures of `python -m benchmarks.measure`: two files, and the panels of the report."""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.plotting import PLAIN, STYLE, new_figure, plain_numbers, save
from benchmarks.measure.measuring import GRID, POSITIONS, SIGMAS
from flatreg import plots


def draw(folder: pathlib.Path, title: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Writes the figures into the folder and returns their names.

    Args:
      folder: where the figures are written.
      title: the line above the panels.
      found: the measures by name.
    """
    figures = {"slices.png": _slices, "density.png": _density_alone}
    for name, draw_panels in figures.items():
        with matplotlib.rc_context(STYLE):
            figure = new_figure(11, 4)
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
            draw_panels(figure, found)
            save(figure, folder / name)
    return tuple(figures)


def panel(name: str, found: dict[str, Any]) -> bytes:
    """Returns one panel of the report as a PNG picture that is readable on a phone.

    Args:
      name: one of `PANELS`.
      found: the measures by name.
    """
    with matplotlib.rc_context(STYLE), io.BytesIO() as file:
        figure = new_figure(4.4, 3.1)
        PANELS[name](figure.subplots(), found)
        save(figure, file)
        return file.getvalue()


def _slices(figure: Figure, found: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    _directions(left, found)
    _surface(right, found)


def _density_alone(figure: Figure, found: dict[str, Any]) -> None:
    _density(figure.subplots(), found)


def _eigenvalues(ax: Axes, found: dict[str, Any]) -> None:
    pairs = found["eigenpairs"]
    ranks = np.arange(1, len(pairs.values) + 1)
    ax.bar(ranks, pairs.values, yerr=pairs.residuals, width=0.6, color=plots.COLORS[0], capsize=3)
    ax.axhline(0, color=PLAIN, linewidth=0.7)
    ax.set(title="The largest eigenvalues of the Hessian", xlabel="rank", xticks=ranks)


def _density(ax: Axes, found: dict[str, Any]) -> None:
    plots.plot_density(found["density"], ax=ax)
    for value in found["eigenpairs"].values:
        ax.axvline(value, color=plots.COLORS[1], linewidth=0.7)
    ax.set_title("Spectral density (lines: the largest eigenvalues)")


def _directions(ax: Axes, found: dict[str, Any]) -> None:
    slices = found["slices"]
    plots.plot_slice(POSITIONS, slices["top eigenvector"], ax=ax, label="top eigenvector, t/10")
    plots.plot_slice(POSITIONS, slices["random"], ax=ax, label="random direction")
    ax.set(
        title="Along two directions",
        xlabel="t, in units of ‖w‖",
        ylabel="training loss",
        yscale="log",
    )
    plain_numbers(ax.yaxis)


def _surface(ax: Axes, found: dict[str, Any]) -> None:
    losses = found["slices"]["surface"]
    plots.plot_surface(GRID, GRID, losses, ax=ax, label="training loss")
    ax.set(title="Over a plane of random directions (star: lowest)", xlabel="", ylabel="")


def _noise(ax: Axes, found: dict[str, Any]) -> None:
    noise = found["noise"]
    ax.axhline(found["values"]["loss"], color=PLAIN, linewidth=1, linestyle="--", label="no noise")
    ax.errorbar(
        SIGMAS,
        noise.value,
        noise.standard_error,
        color=plots.COLORS[0],
        marker="o",
        markersize=4,
        capsize=3,
        label="mean and standard error",
    )
    ax.set(
        title="Under noise on the weights",
        xlabel="noise, relative to each weight",
        ylabel="training loss",
        xscale="log",
        yscale="log",
    )
    ax.set_xticks(SIGMAS, [f"{sigma:.0%}" for sigma in SIGMAS], minor=False)
    ax.minorticks_off()
    plain_numbers(ax.yaxis)
    ax.legend(frameon=False)


def _path(ax: Axes, found: dict[str, Any]) -> None:
    for name, label in (("segment", "segment"), ("curve", "trained curve")):
        plots.plot_path(found[name], ax=ax, label=label)
    ax.set(
        title="Between the two networks",
        xlabel="position, from this network to the other",
        ylabel="training loss",
    )


PANELS: dict[str, Callable[[Axes, dict[str, Any]], None]] = {
    "eigenvalues": _eigenvalues,
    "density": _density,
    "directions": _directions,
    "surface": _surface,
    "noise": _noise,
    "path": _path,
}
