"""Slices through the loss, and the density of the Hessian's eigenvalues."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks._flatness import GRID, POSITIONS
from benchmarks._plots import COLORS, STYLE
from flatreg import measures


def draw(folder: pathlib.Path, title: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Writes the plots into the folder and returns their names."""
    plots = {"slices.png": _slices, "density.png": _density}
    for name, plot in plots.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, 4))
            FigureCanvasAgg(figure)
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
            plot(figure, found)
            figure.savefig(folder / name)
    return tuple(plots)


def _slices(figure: Figure, found: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    labels = {
        "top eigenvector": "top eigenvector, t/10",
        "random": "random direction",
    }
    for color, (name, label) in zip(COLORS, labels.items(), strict=False):
        left.plot(POSITIONS, found["slices"][name], color=color, label=label)
    left.set(
        title="Along two lines", xlabel="t, in units of ‖w‖", ylabel="training loss", yscale="log"
    )
    left.legend(frameon=False)
    surface = np.log10(found["slices"]["surface"])
    drawn = right.contourf(GRID, GRID, surface.T, levels=20, cmap="viridis")
    right.plot(0, 0, "o", color="white", markersize=4)
    right.set(title="Over a plane of two random directions, filter-normalized")
    right.grid(visible=False)
    figure.colorbar(drawn, ax=right, label="log₁₀ training loss")


def _density(figure: Figure, found: dict[str, Any]) -> None:
    density: measures.Density = found["density"]
    least, most = np.min(density.nodes), np.max(density.nodes)
    width = (most - least) / 200 or 1.0
    grid = np.linspace(least - 5 * width, most + 5 * width, 1000)
    axes: Axes = figure.subplots()
    drawn = np.asarray(measures.density_on_grid(density, grid, width))
    axes.semilogy(grid, drawn, color=COLORS[0])
    axes.fill_between(grid, drawn, 1e-12, color=COLORS[0], alpha=0.2)
    peak = drawn.max()
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-7 * peak, 3 * peak))
    for value in found["eigenpairs"].values:
        axes.axvline(value, color=COLORS[1], linewidth=0.7)
    axes.set_title("Spectral density; lines: the largest eigenvalues")
