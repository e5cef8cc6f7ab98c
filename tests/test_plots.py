"""Plots show the given numbers and do not change the state of matplotlib."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flatreg import measures, plots

T = np.linspace(-1, 1, 7)
X, Y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
BOWL = 1 + (X[:, None] - 0.5) ** 2 + (Y - 1) ** 2
DENSITY = measures.Density(np.array([[-1.0, 3.0], [0.0, 2.0]]), np.array([[0.2, 0.8], [0.5, 0.5]]))
DRAW = {
    "slice": lambda **options: plots.plot_slice(T, T**2, **options),
    "surface": lambda **options: plots.plot_surface(X, Y, BOWL, **options),
    "density": lambda **options: plots.plot_density(DENSITY, **options),
}


def loss_fn(w):
    return jnp.sum(jnp.array([1.0, 4.0]) * w**2)


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_plot_needs_no_display_and_changes_no_global_state(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    ax = draw()
    ax.figure.savefig(tmp_path / "own.png")
    given = Figure().subplots()
    assert draw(ax=given) is given
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert (tmp_path / "own.png").read_bytes().startswith(b"\x89PNG")


def test_a_slice_shows_the_losses_over_their_positions():
    losses = measures.loss_slice(loss_fn, jnp.zeros(2), (jnp.ones(2), jnp.asarray(T)))
    ax = plots.plot_slice(T, losses, label="first")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.stack([T, 5 * T**2], 1), rtol=1e-6)
    plots.plot_slice(T, losses, ax=ax)
    assert ax.lines[0].get_color() != ax.lines[1].get_color()


def test_existing_axis_labels_are_kept():
    ax = Figure().subplots()
    ax.set_ylabel("error")
    plots.plot_slice(T, T, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position t", "error")


def height_at(ax, x, y):
    """The two contour levels between which a point is drawn."""
    filled = ax.collections[0]
    inside = [path.contains_point((x, y)) for path in filled.get_paths()]
    (band,) = np.flatnonzero(inside)
    return filled.levels[band : band + 2]


@pytest.mark.parametrize("scale", [lambda z: z, np.exp], ids=["linear", "logarithmic"])
def test_a_surface_shows_the_losses_between_its_levels(scale):
    """The first direction is horizontal, and the star is at the minimum of the grid."""
    x, y = np.linspace(-1, 1, 41), np.linspace(-2, 2, 81)
    ax = plots.plot_surface(x, y, scale(3 * x[:, None] + y), levels=10)
    for point in [(0.52, -0.31), (-0.52, 0.31), (0.83, 1.71)]:
        low, high = height_at(ax, *point)
        assert low <= scale(3 * point[0] + point[1]) <= high
    ((star_x, star_y),) = ax.lines[0].get_xydata()
    assert (star_x, star_y) == (-1, -2)


@pytest.mark.parametrize("losses", [np.zeros((5, 9)), np.full((5, 9), 0.7), BOWL, BOWL * 1e-30])
def test_the_color_bar_covers_all_losses(losses):
    ax = plots.plot_surface(X, Y, losses, levels=4)
    levels = ax.collections[0].levels
    assert levels[0] <= losses.min() <= losses.max() <= levels[-1]


@pytest.mark.parametrize("factor", [1, 1e4, 1e-5])
def test_the_ticks_of_a_surface_do_not_overlap(factor):
    figure = Figure(figsize=(10, 3), layout="constrained")
    surfaces = figure.subplots(1, 4)
    for ax in surfaces:
        plots.plot_surface(factor * X, factor * Y, BOWL + 1, ax=ax)
    FigureCanvasAgg(figure).draw()
    assert all(len(ax.get_xticks()) >= 2 for ax in surfaces)
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            assert not axis.get_offset_text().get_text()
            boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
            for first, second in itertools.pairwise(boxes):
                assert not first.overlaps(second)


def test_infinite_losses_stay_blank():
    losses = BOWL.copy()
    losses[0, 0], losses[4, 8] = np.inf, np.nan
    filled = plots.plot_surface(X, Y, losses).collections[0]
    assert filled.levels[-1] == BOWL[1, 0]  # the largest of the finite ones
    assert not any(path.contains_point((-0.95, -1.95)) for path in filled.get_paths())
    assert any(path.contains_point((-0.95, 1.95)) for path in filled.get_paths())


def test_a_density_is_drawn_as_density_on_grid(x64):
    """The curve agrees with ``density_on_grid``, and its integral is 1."""
    matrix = np.diag([0.0, 0.0, 0.1, 1.0, 5.0])
    density = measures.spectral_density(
        lambda w: w @ matrix @ w / 2, jnp.ones(5), jax.random.key(0), probes=3
    )
    ax = plots.plot_density(density, width=0.1)
    grid, drawn = ax.lines[0].get_data()
    expected = measures.density_on_grid(density, grid, 0.1)
    np.testing.assert_allclose(drawn, expected, rtol=1e-9, atol=1e-30)
    np.testing.assert_allclose(np.sum(drawn) * (grid[1] - grid[0]), 1, rtol=1e-6)
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert low < drawn.max() < high


def test_two_densities_fit_on_the_same_axes():
    ax = plots.plot_density(DENSITY, label="broad")
    narrow = measures.Density(DENSITY.nodes / 100, DENSITY.weights)
    plots.plot_density(narrow, ax=ax, label="narrow")
    assert ax.get_ylim()[1] > max(line.get_ydata().max() for line in ax.lines)
    assert len(ax.get_legend().get_texts()) == 2


def test_a_spectrum_with_a_single_value_is_drawn():
    density = measures.Density(np.zeros((1, 3)), np.array([[1.0, 0.0, 0.0]]))
    assert np.isfinite(plots.plot_density(density).lines[0].get_ydata()).all()


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda: plots.plot_slice(T, T[1:]), r"loss_slice\(loss_fn, params, \(direction, pos"),
        (lambda: plots.plot_surface(Y, X, BOWL), r"\(first, positions_x\), \(second, positions_y"),
        (lambda: plots.plot_surface(X, Y, BOWL * np.nan), "at least one finite loss"),
        (lambda: plots.plot_surface(X, Y, BOWL, levels=1), "levels to be at least 2, got 1"),
        (lambda: plots.plot_density((np.ones(3), np.ones(2))), "measures.spectral_density"),
        (lambda: plots.plot_density(DENSITY, width=0.0), "width must be positive"),
    ],
)
def test_errors_show_a_corrected_call(draw, expected):
    with pytest.raises(ValueError, match=expected):
        draw()


def test_without_matplotlib_the_error_names_the_extra():
    block = "import sys; sys.modules['matplotlib.axes'] = None; import flatreg.plots"
    run = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert 'pip install "flatreg[plots]"' in run.stderr
