"""The figure of `python -m benchmarks.toy`.

The upper row shows the loss, the metric and the bound over the plane of the two weights. The lower
row shows the labels that the network predicts at the sharp and at the flat minimum.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.common.plotting import STYLE, new_figure, save
from flatreg import plots

TITLES = {"loss": "loss", "metric": "PACGen's metric Ψ", "bound": "bound E L̂(w+u) + KL/√n"}
COLORS = ("#E8602C", "#5BC8F5")
Logits = Callable[[Any, Any], Any]


def draw(
    file: pathlib.Path,
    side: np.ndarray,
    surfaces: dict[str, np.ndarray],
    marked: dict[str, Any],
    data: tuple[np.ndarray, np.ndarray],
    logits: Logits,
) -> None:
    """Draws the figure.

    Args:
      file: where the figure is written. Its folder is created if necessary.
      side: the grid positions along each axis of the plane.
      surfaces: arrays over the grid by the keys of `TITLES`.
      marked: the minima to mark, by their labels. Each has `w`, `eigenvalues` and an attribute for
        each key of `TITLES`.
      data: the training samples and their labels.
      logits: `logits(w, x)` returns the logits of the network.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(12, 7.2)
        grid = figure.add_gridspec(2, 6)
        for i, (name, title) in enumerate(TITLES.items()):
            ax = figure.add_subplot(grid[0, 2 * i : 2 * i + 2])
            _surface(ax, side, surfaces[name], [getattr(at, name) for at in marked.values()])
            ax.set(title=title, xlabel="w₁", ylabel="w₂" if i == 0 else "", aspect="equal")
            for color, at in zip(COLORS, marked.values(), strict=True):
                ax.plot(*at.w, "*", color=color, markersize=13, markeredgecolor="white")
                text: dict[str, Any] = {"ha": "right", "color": "white", "weight": "bold"}
                number = f"{getattr(at, name):.3g}"
                ax.annotate(number, at.w, (-9, 6), textcoords="offset points", **text)
        for i, (color, (label, at)) in enumerate(zip(COLORS, marked.items(), strict=True)):
            ax = figure.add_subplot(grid[1, 3 * i : 3 * i + 3])
            _labels(ax, at.w, *data, logits)
            title = f"{label}: loss {at.loss:.3f}, λ_max {at.eigenvalues[-1]:.3g}"
            ax.set_title(title, color=color, weight="bold")
        file.parent.mkdir(parents=True, exist_ok=True)
        save(figure, file)


def _surface(ax: Axes, side: np.ndarray, values: np.ndarray, marked: list[float]) -> None:
    """Draws a surface, cut off at twice the largest marked value to keep the minima visible."""
    plots.plot_surface(side, side, np.minimum(values, 2 * max(marked)), ax=ax, label=None)
    ax.lines[0].remove()  # the grid's lowest point; the minima are marked instead
    ax.figure.colorbar(ax.collections[0], ax=ax, format="{x:.3g}", shrink=0.85)


def _labels(ax: Axes, w: np.ndarray, x: np.ndarray, labels: np.ndarray, logits: Logits) -> None:
    """Draws the predicted probabilities, the decision boundary, and the samples by label."""
    low, high = x.min(0) - 1, x.max(0) + 1
    across, up = (np.linspace(low[i], high[i], 300) for i in (0, 1))
    ground = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    first, second = np.asarray(logits(w, ground)).T
    odds = (1 / (1 + np.exp(first - second))).reshape(300, 300)
    ax.contourf(across, up, odds, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.6)
    ax.contour(across, up, odds, levels=[0.5], colors="black", linewidths=1.2)
    for label, color in enumerate(("#2166AC", "#B2182B")):
        across, up = x[labels == label].T
        ax.scatter(across, up, s=18, color=color, edgecolors="white", linewidths=0.6)
    ax.set(xlabel="x₁", ylabel="x₂")
    ax.grid(visible=False)
