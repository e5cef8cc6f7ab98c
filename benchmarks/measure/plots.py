"""Slices through the loss, and the density of the Hessian's eigenvalues."""

import pathlib
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.common.flatness import GRID, POSITIONS
from benchmarks.compare.plots import STYLE
from flatreg import plots


def draw(folder: pathlib.Path, title: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Writes the plots into the folder and returns their names."""
    pictures = {"slices.png": _slices, "density.png": _density}
    for name, picture in pictures.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, 4))
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
            picture(figure, found)
            figure.savefig(folder / name)
    return tuple(pictures)


def _slices(figure: Figure, found: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    slices = found["slices"]
    plots.plot_slice(POSITIONS, slices["top eigenvector"], ax=left, label="top eigenvector, t/10")
    plots.plot_slice(POSITIONS, slices["random"], ax=left, label="random direction")
    left.set(
        title="Along two lines", xlabel="t, in units of ‖w‖", ylabel="training loss", yscale="log"
    )
    plots.plot_surface(GRID, GRID, slices["surface"], ax=right, label="training loss")
    right.set(
        title="Over a plane of two random directions, filter-normalized", xlabel="", ylabel=""
    )


def _density(figure: Figure, found: dict[str, Any]) -> None:
    ax = plots.plot_density(found["density"], ax=figure.subplots())
    for value in found["eigenpairs"].values:
        ax.axvline(value, color=plots.COLORS[1], linewidth=0.7)
    ax.set_title("Spectral density; lines: the largest eigenvalues")
