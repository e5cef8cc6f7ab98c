"""Pictures of what `flatreg.measures` found, on the matplotlib axes that they are given.

    figure, (left, right) = plt.subplots(1, 2)
    plots.plot_surface(tx, ty, measures.loss_slice(loss_fn, params, (d, tx), (e, ty)), ax=left)
    plots.plot_density(measures.spectral_density(loss_fn, params, key), ax=right)

Without ``ax`` a function makes a figure that pyplot does not know, and that needs no screen:
``plots.plot_slice(t, losses).figure.savefig("slice.png")``. A notebook does not show it by itself:
pass ``ax=plt.gca()`` there, or after ``%matplotlib inline`` end the cell with ``.figure``. No
global setting is touched, and all that is drawn can be changed through the axes that come back.
Several curves go on one axes.
"""

from typing import Any

import numpy as np

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        'flatreg.plots draws with matplotlib: pip install "flatreg[plots]".'
    ) from error

# Paul Tol's muted scheme, which stays apart for color-blind readers, its strong colors first
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
    """The loss along a line.

    Args:
      positions: t, shape (m,).
      losses: of ``measures.loss_slice`` or ``interpolate``, shape (m,).
      ax: where to draw, ``plt.gca()`` in a notebook; None makes a figure that is none of pyplot's.
      label: for the legend.
      color: by default the first of ``COLORS`` that no curve on these axes has yet.

    Returns:
      The axes.

    Raises:
      ValueError: if the shapes differ.

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
            f"{values.shape}: losses = measures.loss_slice(loss_fn, params, (direction, positions))"
        )
    ax = _dressed(ax, "position t", "loss")
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
    """The loss over a plane: filled contours with their lines, and a star at the grid's minimum.

    Contours are equally far apart, or in proportion where the losses are positive and the largest
    is above ten times the least. What is not finite stays blank.

    Args:
      positions_x: positions along the first direction, shape (m₁,).
      positions_y: along the second, shape (m₂,).
      losses: of ``measures.loss_slice``, shape (m₁, m₂).
      ax: where to draw, ``plt.gca()`` in a notebook; None makes a figure that is none of pyplot's.
      levels: how many steps of color, at least 2.
      label: of the color bar; None leaves the bar out.

    Returns:
      The axes.

    Raises:
      ValueError: if the shapes do not match, no loss is finite, or ``levels`` is below 2.

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
            f"losses must have the shape (len(positions_x), len(positions_y)), at least 2 by 2, got"
            f" {values.shape} for {x.shape} and {y.shape}: losses = measures.loss_slice(loss_fn, "
            "params, (first, positions_x), (second, positions_y))"
        )
    if levels < 2 or not np.isfinite(values).any():
        raise ValueError(f"a surface needs levels of 2 or more, got {levels}, and a finite loss.")
    ax = _dressed(ax, "position along the first direction", "along the second")
    finite = np.ma.masked_invalid(values)
    edges, norm = _contours(finite.min(), finite.max(), levels)
    filled = ax.contourf(x, y, finite.T, levels=edges, norm=norm, cmap="viridis")
    ax.contour(x, y, finite.T, levels=edges[1:-1], colors="white", linewidths=0.5, alpha=0.35)
    i, j = np.unravel_index(finite.argmin(), values.shape)
    ax.plot(x[i], y[j], "*", color="white", markersize=11, markeredgecolor="black", zorder=3)
    ax.grid(visible=False)
    if label is not None:
        bar = ax.figure.colorbar(filled, ax=ax, label=label, format="{x:.3g}")
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
    """The density of the Hessian's eigenvalues on a log axis, down to 1e-7 of the highest peak.

    Args:
      density: what ``measures.spectral_density`` returned: nodes and weights, (probes, steps).
      ax: where to draw, ``plt.gca()`` in a notebook; None makes a figure that is none of pyplot's.
      label: for the legend.
      color: as in :func:`plot_slice`.
      width: standard deviation of the Gaussian that stands for a node; by default 1/200 of the
        way from the smallest node to the largest. Give two networks that are compared the same.

    Returns:
      The axes.

    Raises:
      ValueError: if nodes and weights differ in shape, or ``width`` is not positive.

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
            f"nodes {nodes.shape} and weights {weights.shape} must have one shape: density = "
            "measures.spectral_density(loss_fn, params, key)"
        )
    least, most = nodes.min(), nodes.max()
    width = (most - least) / 200 or 1.0 if width is None else width
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}: None takes one that suits.")
    grid = np.linspace(least - 6 * width, most + 6 * width, 8 * round((most - least) / width) + 97)
    drawn = np.zeros_like(grid)
    for node, weight in zip(nodes.ravel(), weights.ravel(), strict=True):
        drawn += weight * np.exp(-(((grid - node) / width) ** 2) / 2)
    drawn /= len(nodes) * width * np.sqrt(2 * np.pi)
    ax = _dressed(ax, "eigenvalue of the Hessian", "density")
    color = color or _next_color(ax)
    ax.plot(grid, drawn, color=color, linewidth=1.2, label=label)
    ax.fill_between(grid, drawn, color=color, alpha=0.2, linewidth=0)
    peak = ax.dataLim.y1
    ax.set(yscale="log", ylim=(1e-7 * peak, 3 * peak))
    return _with_legend(ax, label)


def _contours(low: float, high: float, levels: int) -> tuple[np.ndarray, Normalize]:
    if low > 0 and high > 10 * low:
        edges, norm = np.geomspace(low, high, levels + 1), LogNorm(low, high)
        edges[[0, -1]] = low, high  # as rounding would leave the extremes blank
        return edges, norm
    if high - low <= 1e-6 * abs(high):  # flat up to rounding
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return np.linspace(low, high, levels + 1), Normalize(low, high)


def _dressed(ax: Axes | None, xlabel: str, ylabel: str) -> Axes:
    """Light axes, named unless they have a name already."""
    if ax is None:
        ax = Figure(figsize=(5.5, 4), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#EBEBEB", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel(ax.get_xlabel() or xlabel)
    ax.set_ylabel(ax.get_ylabel() or ylabel)
    return ax


def _next_color(ax: Axes) -> str:
    taken = [line.get_color() for line in ax.lines]
    return next((color for color in COLORS if color not in taken), COLORS[len(taken) % len(COLORS)])


def _with_legend(ax: Axes, label: str | None) -> Axes:
    if label is not None:
        ax.legend(frameon=False)
    return ax
