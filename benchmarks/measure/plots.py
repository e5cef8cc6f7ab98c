"""The figures of `python -m benchmarks.measure`: slices of the loss, and the spectral density."""

import pathlib
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.common.plotting import STYLE, new_figure
from benchmarks.measure.measuring import GRID, POSITIONS
from flatreg import plots


def draw(folder: pathlib.Path, title: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Writes the figures into the folder and returns their names.

    Args:
      folder: where the figures are written.
      title: the line above the panels.
      found: the measures by name.
    """
    figures = {"slices.png": _slices, "density.png": _density}
    for name, draw_panels in figures.items():
        with matplotlib.rc_context(STYLE):
            figure = new_figure(11, 4)
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
            draw_panels(figure, found)
            figure.savefig(folder / name)
    return tuple(figures)


def _slices(figure: Figure, found: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    slices = found["slices"]
    plots.plot_slice(POSITIONS, slices["top eigenvector"], ax=left, label="top eigenvector, t/10")
    plots.plot_slice(POSITIONS, slices["random"], ax=left, label="random direction")
    left.set(
        title="Along two directions",
        xlabel="t, in units of ‖w‖",
        ylabel="training loss",
        yscale="log",
    )
    plots.plot_surface(GRID, GRID, slices["surface"], ax=right, label="training loss")
    right.set(
        title="Over a plane of two filter-normalized random directions (star: lowest value)",
        xlabel="",
        ylabel="",
    )


def _density(figure: Figure, found: dict[str, Any]) -> None:
    ax = plots.plot_density(found["density"], ax=figure.subplots())
    for value in found["eigenpairs"].values:
        ax.axvline(value, color=plots.COLORS[1], linewidth=0.7)
    ax.set_title("Spectral density (lines: the largest eigenvalues)")
