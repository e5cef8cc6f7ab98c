"""Bounds and certificates hold in float32, and for kernels as they are stored.

The references are closed forms and norms computed with NumPy in float64.
"""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from flatreg import lipschitz
from flatreg.lipschitz.control.rounding import applied, rounded
from tests.support.kernels import first_update

KEY = jax.random.key(0)
SHAPES = {"dense": (40, 24), "wide": (5, 60), "heads": (12, 3, 4), "stack": (2, 7, 7)}
OPERATORS = {
    "dense": lipschitz.Dense(),
    "wide": lipschitz.Dense(),
    "heads": lipschitz.Dense((0,)),
    "stack": lipschitz.Stacked(lipschitz.Dense()),
}
CONVOLUTION = {"conv": lipschitz.Convolution((7, 2), strides=2, padding=[(3, 1)])}


def matrices(params):
    """The matrix (inputs, outputs) of every kernel in float64, and that of each layer."""
    for name, kernel in params.items():
        kernel = np.asarray(kernel, np.float64)
        if name == "conv":
            yield name, strided(kernel)
        else:
            layers = kernel if name == "stack" else [kernel.reshape(kernel.shape[0], -1)]
            yield from ((name, layer) for layer in layers)


def strided(kernel):
    """The matrix of the convolution in CONVOLUTION, tap by tap."""
    matrix = np.zeros((7, 2, 5, kernel.shape[2]))
    for output in range(5):
        for tap in range(kernel.shape[0]):
            place = 2 * output + tap - 3
            if 0 <= place < 7:
                matrix[place, :, output] += kernel[tap]
    return matrix.reshape(14, -1)


def draw(rng, dtype, scale, shapes=SHAPES):
    return {
        name: jnp.asarray(scale * rng.normal(size=shape) / np.sqrt(shape[0]), dtype)
        for name, shape in shapes.items()
    }


NORMS = {
    "2": (
        lambda bound: lipschitz.project_spectral_norm(
            bound, norm="upper_bound", operators=OPERATORS | CONVOLUTION
        ),
        lambda matrix: np.linalg.norm(matrix, 2),
    ),
    "1": (
        lambda bound: lipschitz.project_norm(1, bound, operators=OPERATORS),
        lambda matrix: np.linalg.norm(matrix.T, 1),
    ),
    "inf": (
        lambda bound: lipschitz.project_norm(jnp.inf, bound, operators=OPERATORS),
        lambda matrix: np.linalg.norm(matrix.T, np.inf),
    ),
}


@pytest.mark.nightly_except("bfloat16-*")
@pytest.mark.parametrize(
    ("dtype", "norm"),
    [
        (jnp.bfloat16, "2"),
        (jnp.float16, "2"),
        (jnp.bfloat16, "inf"),
        *(
            pytest.param(dtype, norm, marks=pytest.mark.nightly)
            for dtype, norm in [
                (jnp.float32, "2"),
                (jnp.float16, "inf"),
                (jnp.float32, "inf"),
                (jnp.bfloat16, "1"),
                (jnp.float16, "1"),
                (jnp.float32, "1"),
            ]
        ),
    ],
)
def test_no_stored_kernel_exceeds_the_bound(dtype, norm):
    """Random kernels of several sizes and scales, over several steps from each start."""
    factory, exact = NORMS[norm]
    tx = factory(0.7)
    shapes = SHAPES | ({"conv": (4, 2, 3)} if norm == "2" else {})

    @jax.jit
    def step(params, updates):
        updates, _ = tx.update(updates, tx.init(params), params)
        return optax.apply_updates(params, updates)

    rng = np.random.default_rng(0)
    least = 1.0
    for scale in (0.3, 1, 3, 20):
        params = draw(rng, dtype, scale, shapes)
        for change in (0.5, 0.05, 0.01):
            params = step(params, draw(rng, dtype, change, shapes))
            assert {x.dtype for x in params.values()} == {np.dtype(dtype)}
            for name, matrix in matrices(params):
                found = exact(matrix)
                assert found <= 0.7, (name, scale, change)
                least = min(least, found / 0.7) if (scale, change) == (3, 0.5) else least
    # The kernels are not shrunk more than their dtype requires.
    assert least >= (0.95 if norm == "2" else 1) - 1e-5 - 12 * float(jnp.finfo(dtype).eps)


@pytest.mark.slow
def test_a_change_of_dtype_is_part_of_the_guarantee():
    """float32 updates of bfloat16 kernels, and the other way around."""
    tx = NORMS["2"][0](1.0)
    shapes = SHAPES | {"conv": (4, 2, 3)}
    rng = np.random.default_rng(1)
    for own, other in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)):
        params, updates = draw(rng, own, 2, shapes), draw(rng, other, 0.1, shapes)
        new, _ = jax.jit(tx.update)(updates, tx.init(params), params)
        assert {x.dtype for x in new.values()} == {np.dtype(other)}
        for _, matrix in matrices(optax.apply_updates(params, new)):
            assert np.linalg.norm(matrix, 2) <= 1


def test_a_kernel_far_above_the_bound_becomes_small_or_zero():
    """bfloat16 cannot hold the difference of 1000 and 1, so the kernel may become zero."""
    params = {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)) * 1e3).astype("bfloat16")
    }
    tx = lipschitz.project_spectral_norm(1e-3, norm="upper_bound")
    projected = optax.apply_updates(params, first_update(tx, params)[0])["kernel"]
    assert np.linalg.norm(np.float64(projected), 2) <= 1e-3


def test_a_kernel_50_times_above_the_bound_is_not_lost():
    """Several attempts are needed until the rounded difference leads to a kernel in the bound."""
    kernel = np.random.default_rng(0).normal(size=(8, 6)) * 10
    params = {"kernel": jnp.asarray(kernel).astype("bfloat16")}
    tx = lipschitz.project_spectral_norm(1.0, norm="upper_bound")
    projected = optax.apply_updates(params, first_update(tx, params)[0])["kernel"]
    assert 0.3 < np.linalg.norm(np.float64(projected), 2) <= 1


@pytest.mark.parametrize("norm", ["power", "upper_bound"])
def test_not_a_number_reaches_the_parameters(norm):
    params = {"kernel": jnp.eye(3), "count": jnp.ones((), jnp.int32)}
    tx = lipschitz.project_spectral_norm(1.0, norm=norm)
    updates = {"kernel": jnp.full((3, 3), jnp.nan), "count": jnp.ones((), jnp.int32)}
    new, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    assert new["count"] == 1  # other leaves, here a counter, pass unchanged
    assert jnp.isnan(optax.apply_updates(params, new)["kernel"]).all()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_rounding_is_that_of_numpy(dtype):
    """Also for subnormal numbers, which reduce_precision turns into zero."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=2000) * 10.0 ** rng.uniform(-8, 2, 2000))
    np.testing.assert_array_equal(
        jax.jit(rounded, static_argnums=1)(x, dtype), np.float32(x.astype(dtype))
    )
    small = np.float32(x * 1e-3).astype(dtype)
    total = jax.jit(applied)(x.astype(dtype), small)
    np.testing.assert_array_equal(total, np.float32(optax.apply_updates(x.astype(dtype), small)))


INPUTS = 150_528  # those of an image of 224×224×3


def kernel_of_many_inputs(name):
    """A positive kernel u vᵀ, where v contains powers of two, and its norm ‖u‖‖v‖."""
    normal = np.random.default_rng(0).normal(size=(INPUTS, 1))
    u, v = (np.ones((INPUTS, 1)), [1, 1]) if name == "ones" else (np.abs(normal), [1, 2])
    u = np.float32(u)
    return u * np.float32(v), np.linalg.norm(np.float64(u)) * np.linalg.norm(v)


def dense(kernel, x):
    return x @ kernel


def pointwise(kernel, x):
    return jax.lax.conv_general_dilated(
        x, kernel[None], (1,), "VALID", None, None, ("NWC", "WIO", "NWC")
    )


BOUNDS = {
    "spectral_norm_upper_bound": lipschitz.spectral_norm_upper_bound,
    "spectral_norm": lambda kernel: lipschitz.spectral_norm(kernel, steps=2).upper,
    "lipschitz_bound": lambda kernel: (
        lipschitz.lipschitz_bound(dense, kernel, jnp.ones((1, INPUTS))).upper
    ),
    "lipschitz_bound, convolution": lambda kernel: (
        lipschitz.lipschitz_bound(pointwise, kernel, jnp.ones((1, 1, INPUTS))).upper
    ),
}


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("name", ["ones", "positive"])
def test_a_bound_holds_for_many_inputs_of_one_sign(bound, name):
    """The rounding errors of sums of one sign add up."""
    kernel, norm = kernel_of_many_inputs(name)
    assert norm <= float(jax.jit(bound)(kernel)) <= 1.0002 * norm


def test_a_projection_holds_for_many_inputs_of_one_sign():
    kernel, _ = kernel_of_many_inputs("positive")
    tx = lipschitz.project_spectral_norm(1.0, norm="upper_bound")
    params = {"kernel": jnp.asarray(kernel)}
    update, _ = jax.jit(functools.partial(first_update, tx))(params)
    projected = np.float64(optax.apply_updates(params, update)["kernel"])
    assert 0.9998 <= math.sqrt(np.linalg.norm(projected.T @ projected, 2)) <= 1


@pytest.mark.parametrize("shape", [(12, 8), (150, 130)])
@pytest.mark.parametrize("where", ["traced", "concrete"])
def test_the_margin_for_rounding_is_small(shape, where):
    """Also if sums are computed in blocks. For pairs, it is that of ‖Wᵢ − Wⱼ‖."""
    kernel = np.float32(np.random.default_rng(0).normal(size=shape))

    def bound(kernel):
        return lipschitz.lipschitz_bound(dense, kernel, jnp.ones((1, shape[0])))

    upper, pairs, _ = jax.jit(bound)(kernel) if where == "traced" else bound(kernel)
    rows = np.float64(kernel.T)
    norm = np.linalg.norm(rows, 2)
    slack = 2e-6 if where == "concrete" else 2e-6 * max(shape)
    assert norm <= float(upper) <= norm * (1 + slack)
    distances = np.linalg.norm(rows[:, None] - rows, axis=-1)
    exact = np.minimum(distances, math.sqrt(2) * norm)
    assert (exact <= np.float64(pairs)).all()
    assert (np.float64(pairs) <= exact * (1 + slack)).all()


def test_symbols_are_multiplied_in_blocks():
    """A convolution on a circle of 4 places, whose matrices have 70 rows."""
    taps = np.float32(np.random.default_rng(0).normal(size=(2, 70, 70)))
    circle = lipschitz.Convolution((4, 70), padding="CIRCULAR")
    symbol = [np.float64(taps[0]) + np.float64(taps[1]) * 1j**k for k in range(4)]
    norm = max(np.linalg.norm(matrix, 2) for matrix in symbol)
    bound = jax.jit(lambda k: lipschitz.spectral_norm_upper_bound(k, circle))(taps)
    assert norm <= float(bound) <= 1.02 * norm


@pytest.mark.filterwarnings("error")
def test_concrete_convolutions_are_bounded_in_float64():
    kernel, norm = kernel_of_many_inputs("positive")
    assert norm <= float(BOUNDS["lipschitz_bound, convolution"](kernel)) <= (1 + 1e-6) * norm


@pytest.mark.parametrize("where", ["traced", "concrete"])
def test_a_tiny_bound_is_not_zero(where):
    """The products of these norms and their squares are too small for float32."""
    kernel = jnp.float32(1e-9) * jnp.eye(3)
    x = jnp.ones((1, 3))
    functions = {
        "deep": lambda w, x: x @ w @ w @ w @ w @ w @ w,
        "parts": lambda w, x: jnp.concatenate([x @ w @ w @ w, 2 * (x @ w @ w @ w)], axis=-1),
    }
    for name, function in functions.items():

        def bound(w, function=function):
            return lipschitz.lipschitz_bound(function, w, x).upper

        upper = float((jax.jit(bound) if where == "traced" else bound)(kernel))
        norm = 1e-54 if name == "deep" else math.sqrt(5) * 1e-27
        assert upper >= max(norm, float(jnp.finfo("float32").tiny)), name


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_certified_radius_is_rounded_toward_zero(is_wide):
    """It is at most (zᵧ − zⱼ)/Lᵧⱼ, also for logits in float32 and bounds in float64."""
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(2000, 2)))
    labels = logits.argmax(axis=1)
    margins = np.float64(logits).max(axis=1) - np.float64(logits).min(axis=1)
    for constant in np.float32([0.1, 0.7, 3.0]):
        constant = np.float64(constant) if is_wide else constant
        for given, divisor in ((constant, math.sqrt(2)), (np.full((2, 2), constant), 1)):
            with jax.enable_x64(is_wide):
                radii = np.float64(lipschitz.certified_radius(logits, labels, given))
            exact = margins / (divisor * np.float64(constant))
            assert (radii <= exact).all()
            np.testing.assert_allclose(radii, exact, rtol=1e-6)


def test_a_radius_that_is_too_large_for_the_dtype_is_finite():
    """Only a Lipschitz constant of zero certifies an infinite radius."""
    radius = lipschitz.certified_radius(jnp.array([[100.0, 0.0]]), jnp.array([0]), 2e-38)
    assert 1e38 < radius < jnp.inf
