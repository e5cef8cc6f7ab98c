"""Numerical limits: zero, huge, tiny and non-finite gradients, half precision, mixed dtypes.

The reference is the gradient of the surrogate in float64. The losses are chosen so that they can be
evaluated accurately in half precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from tests.support.cases import CASES, Case, every_kind
from tests.support.losses import direction_of

HVPS = {
    "exact": flatreg.exact_hvp,
    "forward": flatreg.forward_hvp,
    "reverse": flatreg.reverse_hvp,
    "finite difference": flatreg.finite_difference_hvp(0.1),
}
EXACT = [HVPS[name] for name in ("exact", "forward", "reverse")]
COEFFICIENTS = np.array([0.5, -1.0, 0.75, 0.25, -0.5, 1.0])
START = np.array([0.5, 1.0, -0.25, -0.5, 0.125, -1.0])


def curved(params, size=1.0):
    """Σ cᵢwᵢ + wᵢ⁴/32 + wᵢwᵢ₊₁/16 over a pair (w₁, w₂, w₃), (w₄, w₅, w₆), times ``size``.

    The size multiplies each term, so that no number in the gradient is larger than the gradient.
    """
    w = jnp.concatenate(params) if isinstance(params, tuple) else params
    c = jnp.asarray(size * COEFFICIENTS, w.dtype)
    power, couple = jnp.asarray(size / 32, w.dtype), jnp.asarray(size / 16, w.dtype)
    return jnp.sum(c * w + power * w * w * w * w) + jnp.sum(couple * w[1:] * w[:-1])


def pair(dtype):
    return jnp.asarray(START[:3], dtype), jnp.asarray(START[3:], dtype)


def in_float64(case, size, **changes):
    """The gradient of the surrogate of ``curved``."""
    with jax.enable_x64(True):
        surrogate = lambda w: case.surrogate(lambda w: curved(w, size), w, **changes)  # noqa: E731
        return np.asarray(jax.grad(surrogate)(jnp.asarray(START)))


def assert_parallel(d, expected, tolerance):
    """‖d − expected‖ ≤ tolerance ‖expected‖, computed in float64."""
    d = np.concatenate([np.asarray(x, np.float64) for x in d])
    assert np.all(np.isfinite(d))
    size = np.abs(expected).max()
    assert np.linalg.norm(d / size - expected / size) <= tolerance * np.linalg.norm(expected / size)


@pytest.mark.nightly_except("*-float16")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", [c for c in CASES if c.uses_clean], ids=lambda case: case.name)
def test_gradient_of_zero_gives_zero(case: Case, dtype):
    """At a minimum, at a saddle, and where the loss is constant."""
    for curvature in ([1.0, 2.0, 3.0], [1.0, -2.0, 0.0], [0.0, 0.0, 0.0]):
        a = jnp.asarray(curvature, dtype)
        d = direction_of(case.make(), lambda w, a=a: jnp.sum(a * w**2), jnp.zeros(3, dtype))
        assert d.dtype == dtype
        np.testing.assert_array_equal(d, 0)


@every_kind
def test_loss_without_curvature_gives_the_plain_gradient(case: Case):
    """Hĝ = 0 and ∇L(θ + ε) = g. Only ``normalize_clean`` gives a different direction."""
    g = jnp.array([3.0, 0.0, -4.0])
    d = direction_of(case.make(), lambda w: g @ w, jnp.ones(3))
    expected = 0.2 * g / 5 + 0.8 * g if case.name == "penalized_gradient_unit" else g
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hvp", HVPS.values(), ids=HVPS)
@pytest.mark.parametrize("case", [c for c in CASES if c.uses_hvp], ids=lambda case: case.name)
def test_gradient_of_zero_gives_zero_by_every_product(case: Case, hvp):
    d = direction_of(case.make(hvp=hvp), lambda w: jnp.sum(w**2), jnp.zeros(3))
    np.testing.assert_array_equal(d, 0)


EXTREMES = {
    "3e4 in float16": (3e4, jnp.float16, 2e-2),
    "3e20 in float32": (3e20, jnp.float32, 1e-5),
    "1e-23 in float32": (1e-23, jnp.float32, 1e-5),
}
every_extreme = pytest.mark.parametrize(
    ("size", "dtype", "tolerance"), EXTREMES.values(), ids=EXTREMES
)


@pytest.mark.parametrize("hvp", [*EXACT, flatreg.finite_difference_hvp(4.0)], ids=HVPS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_every_hvp_works_with_a_float32_oracle_of_narrow_weights(hvp, dtype):
    curvature, w = jnp.array([1.0, 3.0, 0.5]), jnp.array([1.0, -0.5, 2.0], dtype)
    g, hessian = hvp(lambda w: curvature * w.astype(jnp.float32), w)
    v = jnp.array([1.0, -2.0, 0.5], dtype)
    product = hessian(v)
    assert g.dtype == product.dtype == jnp.float32
    np.testing.assert_allclose(product, curvature * v, rtol=0.02)
    method = flatreg.gradient_regularization(0.25, hvp=hvp)
    d, _ = method.update(g, method.init(w), w, grad_fn=lambda w: curvature * w.astype(jnp.float32))
    assert d.dtype == dtype
    np.testing.assert_allclose(d.astype(float), curvature * w * (1 + curvature / 2), rtol=0.02)


def test_shift_length_does_not_depend_on_gradient_size():
    """For gradients from 1e-30 to 1e36, one at a time and in one vmap.

    The oracle returns its point, so the direction is the shift.
    """
    method = flatreg.sam(0.5)
    uphill = np.random.default_rng(0).uniform(-1, 1, 1000)
    gradients = jnp.asarray(uphill * 10.0 ** np.arange(-30, 38, 2)[:, None], jnp.float32)

    def shift(g):
        w = jnp.zeros_like(g)
        return method.update(g, method.init(w), w, grad_fn=lambda point: point)[0]

    for shifts in (jax.vmap(shift)(gradients), [*map(jax.jit(shift), gradients)]):
        for found in shifts:
            expected = 0.5 * uphill / np.linalg.norm(uphill)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def rescaled(case, size):
    """Hyperparameters for a loss of the given size. μ has units of 1/loss, so it is divided."""
    return {"mu": case.scalars["mu"] / size} if "mu" in case.scalars else {}


@pytest.mark.nightly_except("sam-*")
@every_extreme
@every_kind
def test_extreme_gradient_has_the_right_direction(case: Case, size, dtype, tolerance):
    changes = rescaled(case, size)
    d = direction_of(case.make(**changes), lambda w: curved(w, size), pair(dtype))
    assert_parallel(d, in_float64(case, size, **changes), tolerance)


@pytest.mark.nightly_except("gam-*", "gradient_norm_penalty_1-*")
@every_extreme
@pytest.mark.parametrize("hvp", ["forward", "finite difference"])
@pytest.mark.parametrize("case", [c for c in CASES if c.uses_hvp], ids=lambda case: case.name)
def test_extreme_gradient_has_the_right_product(case: Case, hvp, size, dtype, tolerance):
    """On a quadratic, where finite differences are exact."""
    a = np.array([0.5, 1.0, -0.75])
    start, changes = np.array([1.0, -0.5, 1.0]), rescaled(case, size)

    def loss(w):
        a_sized = jnp.asarray(size * a, w.dtype)
        return jnp.sum(a_sized * w * w) / 2

    d = direction_of(case.make(hvp=HVPS[hvp], **changes), loss, jnp.asarray(start, dtype))
    with jax.enable_x64(True):
        expected = jax.grad(lambda w: case.surrogate(loss, w, **changes))(jnp.asarray(start))
    assert_parallel([d], np.asarray(expected), 3 * tolerance)


@pytest.mark.nightly_except("sam-*", "gam-*", "gradient_norm_penalty_2-*")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@every_kind
def test_direction_has_the_parameters_dtype_and_precision(case: Case, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        d = direction_of(case.make(), curved, pair(dtype))
    assert [x.dtype for x in d] == [dtype, dtype]
    assert_parallel(d, in_float64(case, 1.0), max(20 * float(jnp.finfo(dtype).eps), 1e-9))


@pytest.mark.nightly_except("sam-*", "gam_accelerated-*", "looksam-*")
@pytest.mark.parametrize(
    "dtypes",
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16), (jnp.float16, jnp.bfloat16)],
    ids=lambda dtypes: "-".join(jnp.dtype(dtype).name for dtype in dtypes),
)
@every_kind
def test_each_leaf_keeps_its_own_dtype(case: Case, dtypes):
    params = tuple(x.astype(dtype) for x, dtype in zip(pair(jnp.float32), dtypes, strict=True))
    d = direction_of(case.make(), curved, params)
    assert tuple(x.dtype for x in d) == dtypes
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    assert_parallel(d, in_float64(case, 1.0), 20 * coarsest)


@pytest.mark.nightly_except("*-nan")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_kind
def test_non_finite_gradient_reaches_the_direction(case: Case, bad):
    """A NaN or Inf in the clean gradient, if the method uses it, or only in the second pass."""
    method, w = case.make(), jnp.asarray(START, jnp.float32)
    state, grad_fn = method.init(w), jax.grad(curved)
    g = grad_fn(w)
    d, _ = method.update(g.at[0].set(bad), state, w, grad_fn=grad_fn)
    assert case.uses_clean != jnp.all(jnp.isfinite(d))
    broken = jax.grad(lambda w: curved(w) + bad * w[0] ** 2)
    d, _ = method.update(g, state, w, grad_fn=broken)
    assert not jnp.all(jnp.isfinite(d))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_norm_over_many_weights_is_accumulated_in_float32(dtype):
    """θ + ρĝ = (1 + ρ/√n)θ for n equal weights; n overflows float16."""
    count, tolerance = 200_000, 4 * float(jnp.finfo(dtype).eps)
    w, rho = jnp.ones(count, dtype), 0.25 * count**0.5
    for method in (flatreg.sam(rho), flatreg.gradient_norm_penalty(rho), flatreg.gam(1.0, rho)):
        d = direction_of(method, lambda w: jnp.sum(w * w) / 2, w)
        np.testing.assert_allclose(np.asarray(d, np.float32), 1.25, rtol=tolerance)


def test_combining_many_methods_does_not_overflow_in_float16():
    """g + Σ(dᵢ − g) with five methods passes through −4g."""
    g = jnp.full(3, 3e4, jnp.float16)
    method = flatreg.combine(*[flatreg.sam(0.1)] * 5)
    np.testing.assert_array_equal(direction_of(method, lambda w: jnp.sum(g * w), 0 * g), g)


@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_mean_over_parts_does_not_overflow_in_float16(option):
    loss_fn = lambda w, x: jnp.mean(w * x)  # noqa: E731
    w, x = jnp.ones((), jnp.float16), jnp.full(8, 3e4, jnp.float16)
    loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, **{option: 4})(w, x)
    assert loss == grads == grad_fn(w) == jnp.float16(3e4)
    assert grads.dtype == jnp.float16


@pytest.mark.parametrize(
    "wrap",
    [
        lambda method: method,
        lambda method: flatreg.combine(method, flatreg.asam()),
        lambda method: flatreg.every(method, 2),
        lambda method: flatreg.after(method, 1),
        lambda method: flatreg.randomly(method, 0.5, jax.random.key(0)),
    ],
    ids=["alone", "combine", "every", "after", "randomly"],
)
def test_wider_gradients_are_cast_to_the_parameters_dtype(wrap):
    """Float32 gradients of bfloat16 parameters, on steps with and without the method."""
    method, w = wrap(flatreg.sam(0.1)), jnp.asarray(START, jnp.bfloat16)
    state, grad_fn = method.init(w), jax.grad(curved)
    for _ in range(2):
        g = grad_fn(w).astype(jnp.float32)
        d, state = method.update(g, state, w, grad_fn=grad_fn)
        assert d.dtype == jnp.bfloat16
