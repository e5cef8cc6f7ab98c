"""Spectral norms compared with the singular values of dense matrices, in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import lipschitz
from flatreg.lipschitz import Convolution, Dense, Linear
from tests.support.kernels import exact_norm

KEY = jax.random.key(0)
CIRCULAR = functools.partial(Convolution, padding="CIRCULAR")


def random_setting(seed):
    """A convolution and its kernel, with random stride, padding, dilation and grouping.

    One setting in five is a transposed convolution.
    """
    rng = np.random.default_rng(seed)
    ndim, kind = 1 + seed % 3, ("SAME", "VALID", "CIRCULAR", "pairs", "transposed")[seed % 5]
    size = (14, 7, 4)[ndim - 1]
    spatial = tuple(rng.integers(size // 2 + 1, size + 1, ndim).tolist())
    window = tuple(rng.integers(1, (6, 5, 3)[ndim - 1], ndim).tolist())
    steps, taps = rng.integers(1, 4, ndim).tolist(), rng.integers(1, 3, ndim).tolist()
    groups = 1 + seed % 2
    inputs, outputs = (groups * rng.integers(1, 4, 2)).tolist()
    strides, dilation = (steps, 1) if kind != "transposed" else (1 + seed % 4 // 2, steps)
    extents = [(k - 1) * d + 1 for k, d in zip(window, taps, strict=True)]
    padding = kind
    if kind in ("pairs", "transposed"):
        padding = [(k // 2, int(rng.integers(0, k + 1))) for k in extents]
    if kind == "VALID":
        spatial = tuple(max(n, k) for n, k in zip(spatial, extents, strict=True))
    if kind == "CIRCULAR" and seed % 4 == 1:
        strides, dilation = 1, steps
    reverse, kernel_axes = bool(seed % 4 == 0), None
    kernel = rng.normal(size=(*window, inputs // groups, outputs))
    kernel = kernel if seed % 7 else np.abs(kernel)
    if reverse:
        kernel_axes, kernel = (*range(ndim), ndim + 1, ndim), kernel.swapaxes(-1, -2)
    linear_map = Convolution(
        (*spatial, inputs), strides, padding, dilation, taps, groups, kernel_axes, reverse
    )
    return linear_map, kernel


@functools.partial(jax.jit, static_argnums=1)
def measured(kernel, linear_map):
    return (
        lipschitz.spectral_norm(kernel, linear_map),
        lipschitz.spectral_norm_upper_bound(kernel, linear_map),
    )


def for_every_size(kernel):
    """The convolution with stride 1 of an infinite input."""
    *window, channels, _ = kernel.shape
    return Convolution((*(None,) * len(window), channels))


@jax.jit
def bounded_everywhere(kernel):
    return lipschitz.spectral_norm_upper_bound(kernel, for_every_size(kernel), tolerance=0.3)


class TestConvolutions:
    @pytest.mark.nightly_except("3")
    @pytest.mark.parametrize(
        "seed", [*range(6), *(pytest.param(i, marks=pytest.mark.nightly) for i in range(6, 32))]
    )
    def test_the_interval_contains_the_norm(self, seed):
        """lower = σ up to rounding ≤ every upper bound, also the one for unknown settings."""
        linear_map, kernel = random_setting(seed)
        expected = exact_norm(linear_map, kernel)
        with jax.enable_x64(seed % 2 == 0):
            dtype = jnp.float64 if seed % 2 == 0 else jnp.float32
            (lower, upper), cheap = measured(jnp.asarray(kernel, dtype), linear_map)
            everywhere = jnp.inf
            if linear_map.kernel_axes is None and seed % 3 == 1:
                everywhere = bounded_everywhere(jnp.asarray(kernel, dtype))
        np.testing.assert_allclose(lower, expected, rtol=1e-6)
        assert lower <= expected * (1 + 1e-6)
        assert min(upper, cheap, everywhere) >= expected * (1 - 1e-6)
        assert upper <= cheap * 1.001

    @pytest.mark.nightly_except("24-3-VALID")
    @pytest.mark.parametrize(
        ("size", "window", "padding"),
        [(16, 3, "SAME"), (16, 3, "CIRCULAR"), (24, 3, "VALID"), (32, 5, "SAME")],
    )
    def test_the_upper_bound_is_within_5_percent_of_the_norm(self, size, window, padding):
        linear_map = Convolution((size, size, 2), padding=padding)
        kernel = np.random.default_rng(size).normal(size=(window, window, 2, 2))
        (expected, _), cheap = measured(kernel, linear_map)
        assert expected <= cheap <= 1.05 * expected

    @pytest.mark.nightly_except("1-7", "2-3")
    @pytest.mark.parametrize(("ndim", "extent"), [(1, 7), (2, 3), (2, 5), (3, 3)])
    def test_the_bound_is_within_5_percent_of_the_symbol(self, extent, ndim):
        """NumPy's FFT finds the symbol's supremum; separable kernels allow a fine grid."""
        factors = np.random.default_rng(extent).normal(size=(ndim, extent))
        kernel = functools.reduce(np.multiply.outer, factors)[..., None, None]
        supremum = math.prod(np.abs(np.fft.fft(f, 4096)).max() for f in factors)
        linear_map = for_every_size(kernel)
        bound = lipschitz.spectral_norm_upper_bound(kernel, linear_map)
        assert supremum * (1 - 1e-5) <= bound <= 1.05 * supremum
        interval = lipschitz.spectral_norm(kernel, linear_map)
        assert interval.lower <= supremum * (1 + 1e-5) <= interval.upper * (1 + 2e-5)

    def test_a_bound_for_every_size_holds_for_each_size(self):
        kernel = np.random.default_rng(0).normal(size=(3, 2, 3))
        every_size = Convolution((None, 2), strides=2)
        bound = jax.jit(lambda k: lipschitz.spectral_norm_upper_bound(k, every_size))(kernel)
        settings = ((8, "SAME"), (9, [(2, 1)]), (60, "CIRCULAR"))
        norms = [exact_norm(Convolution((n, 2), 2, pad), kernel) for n, pad in settings]
        assert max(norms) <= bound <= 1.06 * max(norms)

    def test_a_coarse_grid_is_certified_by_its_factor(self):
        """|1 − e^iω| is largest at ω = π, which is not on a grid of odd length."""
        kernel = np.array([1.0, -1.0])[:, None, None]
        for tolerance in (0.05, 3.0):
            bound = lipschitz.spectral_norm_upper_bound(
                kernel, Convolution((None, 1)), tolerance=tolerance
            )
            assert 2 * (1 - 1e-6) <= bound <= 2 * (1 + tolerance)

    @pytest.mark.slow
    def test_the_norm_is_not_that_of_the_reshaped_kernel(self):
        """The 3×3 box filter has norm 9 with circular padding, and 3 as a reshaped matrix."""
        box = jnp.ones((3, 3, 1, 1))
        assert np.linalg.norm(box.reshape(9, 1), 2) == pytest.approx(3)
        interval = lipschitz.spectral_norm(box, CIRCULAR((8, 8, 1)))
        np.testing.assert_allclose(interval, 9, rtol=1e-5)

    @pytest.mark.nightly
    def test_the_bound_can_be_vmapped_over_kernels(self):
        kernels = jax.random.normal(KEY, (3, 3, 3, 2, 2))
        bound = functools.partial(
            lipschitz.spectral_norm_upper_bound, linear_map=CIRCULAR((6, 6, 2))
        )
        np.testing.assert_allclose(jax.vmap(bound)(kernels), [*map(bound, kernels)], rtol=1e-6)


class TestDense:
    @pytest.mark.nightly_except("shape0")
    @pytest.mark.parametrize("shape", [(5, 7), (60, 40)])
    def test_the_interval_is_the_largest_singular_value(self, shape):
        kernel = np.random.default_rng(0).normal(size=shape)
        expected = np.linalg.norm(kernel, 2)
        lower, upper = lipschitz.spectral_norm(kernel)
        np.testing.assert_allclose(lower, expected, rtol=1e-6)
        assert expected * (1 - 1e-6) <= upper <= 1.001 * expected

    def test_the_norm_is_not_the_spectral_radius(self):
        interval = lipschitz.spectral_norm(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
        np.testing.assert_allclose(interval, 1, rtol=1e-5)

    @pytest.mark.nightly_except("contracting0")
    @pytest.mark.parametrize("contracting", [(0,), (2, 0)])
    def test_any_axes_of_the_kernel_can_be_contracted(self, contracting):
        kernel = np.random.default_rng(0).normal(size=(3, 4, 5))
        linear_map = Dense(contracting)
        expected = exact_norm(linear_map, kernel)
        lower, upper = lipschitz.spectral_norm(kernel, linear_map)
        np.testing.assert_allclose(lower, expected, rtol=1e-6)
        assert expected * (1 - 1e-6) <= upper <= 1.001 * expected

    def test_any_linear_function_has_an_interval(self):
        linear_map = Linear(lambda kernel, x: jnp.cumsum(kernel * x), (6,))
        kernel = np.arange(1.0, 7)
        expected = np.linalg.norm(np.tril(np.ones((6, 6))) * kernel, 2)
        lower, upper = lipschitz.spectral_norm(kernel, linear_map)
        np.testing.assert_allclose(lower, expected, rtol=1e-6)
        assert expected * (1 - 1e-6) <= upper <= 1.001 * expected

    def test_induced_norms_are_norms_of_the_transposed_matrix(self):
        kernel = np.random.default_rng(0).normal(size=(3, 5))
        for ord in (1, np.inf):
            expected = np.linalg.norm(kernel.T, ord)
            np.testing.assert_allclose(lipschitz.induced_norm(kernel, ord), expected, rtol=1e-6)

    def test_the_frobenius_norm_is_over_the_whole_tree(self):
        tree = {"a": jnp.full((2, 2), 1e30), "b": jnp.zeros(3)}
        np.testing.assert_allclose(lipschitz.frobenius_norm(tree), 2e30, rtol=1e-6)


class TestPowerIteration:
    @pytest.mark.nightly_except("4")
    @pytest.mark.parametrize("seed", [1, 4, 7])
    def test_it_converges_to_the_norm_from_below(self, seed):
        linear_map, kernel = random_setting(seed)
        expected = exact_norm(linear_map, kernel)
        u = jax.random.normal(KEY, linear_map.input_shape_of(kernel))
        for steps in (1, 5, 2000):
            sigma, u, v = lipschitz.power_iteration(kernel, linear_map, u, steps)
            assert sigma <= expected * (1 + 1e-6)
        np.testing.assert_allclose(sigma, expected, rtol=1e-4)
        product = jnp.vdot(v, linear_map.apply(jnp.asarray(kernel, jnp.float32), u))
        np.testing.assert_allclose(product, sigma, rtol=1e-5)

    def test_a_zero_kernel_keeps_the_state(self):
        sigma, u, v = lipschitz.power_iteration(jnp.zeros((2, 3)), Dense(), jnp.ones(2))
        assert sigma == 0
        np.testing.assert_array_equal(u, 1)
        np.testing.assert_array_equal(v, 0)


def degenerate(dtype):
    eye = np.zeros((3, 3, 4, 4))
    eye[1, 1] = np.eye(4)
    rank_one = np.ones((3, 3, 4, 4))
    circle = CIRCULAR((6, 6, 4))
    return [
        pytest.param(jnp.asarray(kernel, dtype), linear_map, norm, id=f"{name}-{dtype.__name__}")
        for name, kernel, linear_map, norm in [
            ("zero", np.zeros((3, 3, 4, 4)), circle, 0),
            ("rank one", rank_one, circle, 36),
            ("equal", 2 * eye, circle, 2),
            ("pointwise", np.eye(4)[None, None], Convolution((6, 6, 4), 2), 1),
            ("one channel", np.full((3, 3, 1, 1), 0.5), CIRCULAR((5, 4, 1)), 4.5),
            ("dense zero", np.zeros((3, 5)), Dense(), 0),
            ("dense identity", np.eye(5), Dense(), 1),
            ("dense rank one", np.ones((4, 9)), Dense(), 6),
            ("outside", np.ones((1, 1, 1, 1)), Convolution((2, 2, 1), 1, ((-1, 0), (-1, 0))), 1),
        ]
    ]


@pytest.mark.nightly_except("zero-float32", "outside-bfloat16", "equal-float32", "rank one-float32")
@pytest.mark.parametrize(
    ("kernel", "linear_map", "norm"), [*degenerate(jnp.float32), *degenerate(jnp.bfloat16)[::4]]
)
def test_degenerate_kernels_are_exact_and_without_nan(kernel, linear_map, norm):
    interval, cheap = measured(kernel, linear_map)
    np.testing.assert_allclose(interval.lower, norm, rtol=1e-5)
    assert norm * (1 - 1e-6) <= interval.upper <= cheap * (1 + 1e-6) <= norm * 1.05
    assert cheap.dtype == interval.lower.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: lipschitz.spectral_norm(k, steps=0), ValueError, "steps=50"),
        (lambda k: lipschitz.spectral_norm(k[0, 0, 0]), ValueError, "needs a linear map"),
        (lambda k: lipschitz.spectral_norm(k[0]), ValueError, r"Convolution\(\(None, None, in\)\)"),
        (lambda k: lipschitz.spectral_norm_upper_bound(k), ValueError, "linear_maps"),
        (lambda k: Convolution((None, 8, 2)), ValueError, r"Convolution\(\(None, None, 2\)"),
        (lambda k: Convolution((None, 2), input_dilation=2), ValueError, "transposed"),
        (lambda k: Convolution((None, 2)).apply(k[0], k), ValueError, r"\(32, 32, 16\)"),
        (lambda k: lipschitz.spectral_norm(jnp.arange(4).reshape(2, 2)), TypeError, "float32"),
        (lambda k: lipschitz.spectral_norm_upper_bound(k, tolerance=0), ValueError, "0.05"),
        (lambda k: lipschitz.spectral_norm(k, CIRCULAR((8, 8, 3))), ValueError, "linear_maps"),
        (lambda k: lipschitz.induced_norm(k, 1), ValueError, "reshape"),
        (lambda k: lipschitz.induced_norm(k[0, 0], 2), ValueError, "spectral_norm"),
        (lambda k: lipschitz.power_iteration(k, None, k), ValueError, "Convolution"),
        (lambda k: lipschitz.power_iteration(k[0, 0], None, k), ValueError, "u = jax"),
        (lambda k: lipschitz.power_iteration(k[0, 0], None, k[0, 0, 0], 0), ValueError, "steps=1"),
        (lambda k: Convolution((8, 8, 1), (1, 1, 1)), ValueError, r"strides=\(1, 1\)"),
        (lambda k: Convolution((8, 8, 1), padding="REFLECT"), ValueError, "'CIRCULAR'"),
        (lambda k: Convolution((8,)), ValueError, "spatial"),
        (lambda k: Dense((4,)).matrix(k), ValueError, "contracting"),
        (
            lambda k: lipschitz.spectral_norm(k, Linear(lambda k, x: x, (10**4,))),
            ValueError,
            "power_iteration",
        ),
    ],
)
def test_errors_show_the_corrected_call(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((3, 3, 2, 2)))
