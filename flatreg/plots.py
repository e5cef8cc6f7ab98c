"""Plots the results of ``flatreg.measures`` with matplotlib: slices, surfaces and densities.

Every function draws on the axes that you pass and returns them::

    figure, (left, right) = plt.subplots(1, 2)
    plots.plot_surface(tx, ty, measures.loss_slice(loss_fn, params, (d, tx), (e, ty)), ax=left)
    plots.plot_density(measures.spectral_density(loss_fn, params, key), ax=right)

Without ``ax``, a function creates a figure that is not registered with pyplot and needs no display:
``plots.plot_slice(t, losses).figure.savefig("slice.png")``. Notebooks do not show such a figure
automatically. In a notebook, pass ``ax=plt.gca()``, or run ``%matplotlib inline`` and end the cell
with ``.figure``.

The functions do not change global settings of matplotlib. Everything that they draw can be changed
through the returned axes, and several curves can share the same axes.
"""

from typing import Any

import numpy as np

try:
    from matplotlib import rcParams
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError('flatreg.plots needs matplotlib: pip install "flatreg[plots]".') from error

__all__ = ["COLORS", "plot_density", "plot_path", "plot_slice", "plot_surface"]

TICKS = 5  # at most so many steps between the ticks of a surface
# Paul Tol's muted scheme, distinguishable for color-blind readers, with the strong colors first.
COLORS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#AA4499",
    "#44AA99",
    "#882255",
    "#999933",
    "#88CCEE",
    "#DDCC77",
)


def plot_slice(
    positions: Any,
    losses: Any,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Plots the loss along a line.

    Args:
      positions: the positions t on the line, shape (m,).
      losses: the losses from ``measures.loss_slice`` or ``measures.interpolate``, shape (m,).
      ax: the axes to draw on, such as ``plt.gca()`` in a notebook. If None, a new figure is created
        that is not registered with pyplot.
      label: the name of the curve in the legend. If None, no legend is added.
      color: the color of the curve. If None, the first of ``COLORS`` that no curve on these axes
        uses yet.

    Returns:
      The axes.

    Raises:
      ValueError: if ``positions`` and ``losses`` do not have the same shape (m,).

    Examples:
      >>> from flatreg import plots
      >>> ax = plots.plot_slice([-1.0, 0.0, 1.0], [1.0, 0.0, 1.0], label="sharp")
      >>> ax = plots.plot_slice([-1.0, 0.0, 1.0], [0.1, 0.0, 0.1], label="flat", ax=ax)
      >>> print([text.get_text() for text in ax.get_legend().get_texts()])
      ['sharp', 'flat']
    """
    t, values = np.asarray(positions), np.asarray(losses)
    if t.ndim != 1 or t.shape != values.shape:
        raise ValueError(
            f"positions and losses must both have the shape (m,), got {t.shape} and "
            f"{values.shape}: write losses = measures.loss_slice(loss_fn, params, (direction, "
            "positions))."
        )
    ax = _styled(ax, "position t", "loss")
    ax.plot(t, values, color=color or _next_color(ax), linewidth=1.6, label=label)
    return _with_legend(ax, label)


def plot_surface(
    positions_x: Any,
    positions_y: Any,
    losses: Any,
    *,
    ax: Axes | None = None,
    levels: int = 20,
    label: str | None = "loss",
) -> Axes:
    """Plots the loss over a plane as filled contours, with a star at the minimum of the grid.

    The contour levels are equally spaced. If all losses are positive and the largest is more than
    ten times the smallest, they are spaced logarithmically. Points where the loss is not finite
    stay blank.

    Args:
      positions_x: the positions along the first direction, shape (m₁,).
      positions_y: the positions along the second direction, shape (m₂,).
      losses: the losses from ``measures.loss_slice``, shape (m₁, m₂).
      ax: the axes to draw on, such as ``plt.gca()`` in a notebook. If None, a new figure is created
        that is not registered with pyplot.
      levels: the number of colors, at least 2.
      label: the label of the color bar. If None, the color bar is omitted.

    Returns:
      The axes.

    Raises:
      ValueError: if the shapes do not match, if all losses are infinite or NaN, or if ``levels``
        is below 2.

    Examples:
      >>> import numpy as np
      >>> from flatreg import plots
      >>> x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
      >>> ax = plots.plot_surface(x, y, (x[:, None] - 0.5) ** 2 + y**2)
      >>> print(ax.lines[0].get_xydata())
      [[0.5 0. ]]
    """
    x, y, values = (np.asarray(a) for a in (positions_x, positions_y, losses))
    if x.ndim != 1 or y.ndim != 1 or values.shape != (x.size, y.size) or min(values.shape) < 2:
        raise ValueError(
            "losses must have the shape (len(positions_x), len(positions_y)), at least (2, 2), but "
            f"the shapes are {values.shape}, {x.shape} and {y.shape}: write losses = "
            "measures.loss_slice(loss_fn, params, (first, positions_x), (second, positions_y))."
        )
    if levels < 2 or not np.isfinite(values).any():
        raise ValueError(
            f"plot_surface needs levels to be at least 2, got {levels}, and at least one finite "
            "loss: write levels=20. If all losses are infinite or NaN, choose positions closer to "
            "zero."
        )
    ax = _styled(ax, "position along the first direction", "position along the second direction")
    finite = np.ma.masked_invalid(values)
    edges, norm = _contours(finite.min(), finite.max(), levels)
    filled = ax.contourf(x, y, finite.T, levels=edges, norm=norm, cmap="viridis")
    ax.contour(x, y, finite.T, levels=edges[1:-1], colors="white", linewidths=0.5, alpha=0.35)
    i, j = np.unravel_index(finite.argmin(), values.shape)
    ax.plot(x[i], y[j], "*", color="white", markersize=11, markeredgecolor="black", zorder=3)
    ax.grid(visible=False)
    # The color bar leaves little width, and an offset such as 1e-5 would cover the label.
    ax.xaxis.set_major_locator(_SparseLocator(ax))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    if label is not None:
        shown = edges[:: -(-levels // TICKS)]
        bar = ax.figure.colorbar(filled, ax=ax, label=label, format="{x:.3g}", ticks=shown)
        bar.outline.set_visible(False)
    return ax


def plot_density(
    density: tuple[Any, Any],
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
    width: float | None = None,
) -> Axes:
    """Plots the density of the eigenvalues of the Hessian on a logarithmic density axis.

    The density axis starts at 1e-7 times the highest peak.

    Args:
      density: the result of ``measures.spectral_density``: nodes and weights of the shape
        (probes, steps).
      ax: the axes to draw on, such as ``plt.gca()`` in a notebook. If None, a new figure is created
        that is not registered with pyplot.
      label: the name of the curve in the legend. If None, no legend is added.
      color: the color of the curve. If None, the first of ``COLORS`` that no curve on these axes
        uses yet.
      width: the standard deviation of the Gaussian that is drawn for each node. If None, 1/200 of
        the distance from the smallest to the largest node. To compare two networks, pass the same
        width for both.

    Returns:
      The axes.

    Raises:
      ValueError: if nodes and weights have different shapes, or ``width`` is not positive.

    Examples:
      >>> import numpy as np
      >>> from flatreg import measures, plots
      >>> density = measures.Density(np.array([[0.0, 4.0]]), np.array([[0.9, 0.1]]))
      >>> x, y = plots.plot_density(density).lines[0].get_data()
      >>> print(f"{np.sum(y) * (x[1] - x[0]):.3f}, most of it at {x[np.argmax(y)]:.2f}")
      1.000, most of it at 0.00
    """
    nodes, weights = (np.atleast_2d(np.asarray(a, np.float64)) for a in density)
    if nodes.shape != weights.shape:
        raise ValueError(
            f"nodes and weights must have the same shape, got {nodes.shape} and {weights.shape}: "
            "write density = measures.spectral_density(loss_fn, params, key)."
        )
    least, most = nodes.min(), nodes.max()
    width = (most - least) / 200 or 1.0 if width is None else width
    if not width > 0:
        raise ValueError(
            f"width must be positive, got {width}: write width=None for a width that fits the "
            "spectrum."
        )
    grid = np.linspace(least - 6 * width, most + 6 * width, 8 * round((most - least) / width) + 97)
    drawn = np.zeros_like(grid)
    for node, weight in zip(nodes.ravel(), weights.ravel(), strict=True):
        drawn += weight * np.exp(-(((grid - node) / width) ** 2) / 2)
    drawn /= len(nodes) * width * np.sqrt(2 * np.pi)
    ax = _styled(ax, "eigenvalue of the Hessian", "density")
    color = color or _next_color(ax)
    ax.plot(grid, drawn, color=color, linewidth=1.2, label=label)
    ax.fill_between(grid, drawn, color=color, alpha=0.2, linewidth=0)
    peak = ax.dataLim.y1
    ax.set(yscale="log", ylim=(1e-7 * peak, 3 * peak))
    return _with_legend(ax, label)


def plot_path(
    path: Any,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Plots the loss along a path between two solutions, and the line between the ends' losses.

    The barrier is the largest height of the solid curve above the dashed line.

    Args:
      path: the result of ``measures.barrier`` or ``measures.bezier_path``, or any object with the
        attributes ``positions`` and ``losses``, both of shape (points,).
      ax: the axes to draw on. If None, a new figure is created, as in :func:`plot_slice`.
      label: the name of the solid curve in the legend. If None, no legend is added.
      color: the color of both curves. If None, the first of ``COLORS`` that is not used yet.

    Returns:
      The axes.

    Raises:
      ValueError: if ``positions`` and ``losses`` do not have the same shape (points,).

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures, plots
      >>> path = measures.barrier(lambda w: (w**2 - 1) ** 2, jnp.array(-1.0), jnp.array(1.0))
      >>> ax = plots.plot_path(path, label="segment")
      >>> print(ax.lines[0].get_ydata().max())
      1.0
    """
    t, losses = np.asarray(path.positions), np.asarray(path.losses)
    if t.ndim != 1 or t.shape != losses.shape:
        raise ValueError(
            f"positions and losses must both have the shape (points,), got {t.shape} and "
            f"{losses.shape}: write plot_path(measures.barrier(loss_fn, a, b))."
        )
    ax = _styled(ax, "position t", "loss")
    color = color or _next_color(ax)
    ax.plot(t, losses, color=color, linewidth=1.6, label=label)
    ax.plot(t[[0, -1]], losses[[0, -1]], color=color, linewidth=1, linestyle="--")
    return _with_legend(ax, label)


class _SparseLocator(MaxNLocator):
    """Places ticks so far apart that horizontal labels such as -0.00025 do not overlap."""

    def __init__(self, ax: Axes) -> None:
        super().__init__(TICKS)
        self._ax = ax

    def __call__(self) -> Any:
        low, high = self._ax.get_xlim()
        size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
        width = self._ax.get_window_extent().width * 72 / self._ax.figure.dpi
        for bins in range(TICKS, 0, -1):
            self.set_params(nbins=bins)
            ticks = np.asarray(self.tick_values(low, high))
            pitch = width * (ticks[1] - ticks[0]) / abs(high - low)
            if pitch > 0.75 * size * max(len(f"{tick:g}") for tick in ticks):
                return ticks
        inside = ticks[(ticks >= min(low, high)) & (ticks <= max(low, high))]
        return inside[[0, -1]] if len(inside) > 1 else inside


def _contours(low: float, high: float, levels: int) -> tuple[np.ndarray, Normalize]:
    """Returns the edges of the contour levels, and the linear or logarithmic color scale."""
    if low > 0 and high > 10 * low:
        edges, norm = np.geomspace(low, high, levels + 1), LogNorm(low, high)
        edges[[0, -1]] = low, high  # exact, so that rounding leaves no extreme value blank
        return edges, norm
    if high - low <= 1e-6 * abs(high):  # flat up to rounding
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return np.linspace(low, high, levels + 1), Normalize(low, high)


def _styled(ax: Axes | None, xlabel: str, ylabel: str) -> Axes:
    """Returns the axes, or those of a new figure, with a light grid. Keeps existing labels."""
    if ax is None:
        ax = Figure(figsize=(5.5, 4), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#EBEBEB", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel(ax.get_xlabel() or xlabel)
    ax.set_ylabel(ax.get_ylabel() or ylabel)
    return ax


def _next_color(ax: Axes) -> str:
    """Returns the first of ``COLORS`` that no line on the axes has. Repeats once all are used."""
    taken = [line.get_color() for line in ax.lines]
    return next((color for color in COLORS if color not in taken), COLORS[len(taken) % len(COLORS)])


def _with_legend(ax: Axes, label: str | None) -> Axes:
    if label is not None:
        ax.legend(frameon=False)
    return ax
