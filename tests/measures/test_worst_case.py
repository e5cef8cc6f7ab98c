"""Worst-case sharpness by Auto-PGD against R⁰, exact maxima over balls, and maxima over boxes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import measures
from tests.support.trained import batch_loss, digits, trained

KEY = jax.random.key(0)
RHO = 0.3
SIZE = 5


def quadratics(count):
    """H and g of the losses ½wᵀHw + gᵀw, definite and indefinite, at and away from a minimum."""
    random = np.random.default_rng(1)
    a = random.normal(size=(count, SIZE, SIZE))
    definite = np.arange(count)[:, None, None] % 2
    h = definite * (a @ a.transpose(0, 2, 1)) / SIZE + (1 - definite) * (a + np.swapaxes(a, 1, 2))
    g = random.normal(size=(count, SIZE)) * 10.0 ** random.uniform(-2, 0.5, (count, 1))
    g[::5] = 0
    return jnp.asarray(h), jnp.asarray(g)


def quadratic(h, g):
    return lambda w: w @ h @ w / 2 + g @ w


@functools.partial(jax.jit, static_argnames=("norm", "also_r0"))
def measured(h, g, norm="l2", also_r0=False):
    """The worst case of each quadratic, and R⁰, compiled once for all."""

    def one(hg):
        loss_fn = quadratic(*hg)
        zero = jnp.zeros(SIZE)
        starts = 7 if norm == "l2" else 40  # A box has many corners that are local maxima.
        worst = measures.worst_case_sharpness(
            loss_fn, zero, KEY, RHO, norm=norm, random_starts=starts
        )
        if not also_r0:
            return worst, worst.value
        return worst, measures.zeroth_order_flatness(loss_fn, zero, KEY, RHO, steps=200).value

    return jax.lax.map(one, (h, g))


@pytest.mark.slow
def test_auto_pgd_and_r0_agree_on_quadratics(x64):
    """Two independent maximizers of the same function, neither more than 1% below the other."""
    h, g = quadratics(50)
    worst, zeroth = measured(h, g, also_r0=True)
    np.testing.assert_array_less(0.99 * zeroth, worst.value)
    np.testing.assert_array_less(0.99 * worst.value, zeroth)
    points = np.asarray(worst.point)
    assert np.linalg.norm(points, axis=1).max() <= RHO * (1 + 1e-12)
    at_points = [quadratic(*hg)(w) for *hg, w in zip(h, g, points, strict=True)]
    np.testing.assert_allclose(at_points, worst.value, rtol=1e-12)


@pytest.mark.slow
def test_the_worst_case_in_a_box_is_exact_on_quadratics(x64):
    """A convex quadratic has its maximum at a corner. A diagonal one is a sum over coordinates."""
    random = np.random.default_rng(2)
    h, g = quadratics(30)
    h = np.array(h)
    h[::2] = [np.diag(d) for d in random.normal(size=(15, SIZE))]
    corners = RHO * np.array(list(itertools.product([-1, 1], repeat=SIZE)))
    expected = []
    for i, (matrix, slope) in enumerate(zip(h, np.array(g), strict=True)):
        if i % 2:
            expected.append(max(quadratic(matrix, slope)(corner) for corner in corners))
        else:
            d = np.diag(matrix)
            inner = np.clip(-slope / d, -RHO, RHO)
            choices = [d * w**2 / 2 + slope * w for w in (inner, RHO, -RHO)]
            expected.append(np.max(choices, axis=0).sum())
    worst, _ = measured(jnp.asarray(h), g, norm="linf")
    np.testing.assert_allclose(worst.value, expected, rtol=1e-2)
    assert np.abs(worst.point).max() <= RHO


def test_a_linear_loss_has_a_closed_form():
    """ρ‖Tg‖₂ over the ball and ρ‖Tg‖₁ over the box, with one factor per weight."""
    g, factors = jnp.array([3.0, -4.0, 0.0]), jnp.array([1.0, 2.0, 5.0])
    for norm, expected in (("l2", 0.1 * (9 + 64) ** 0.5), ("linf", 0.1 * (3 + 8))):
        worst = measures.worst_case_sharpness(
            lambda w: g @ w, jnp.ones(3), KEY, 0.1, norm=norm, scale=lambda _: factors, steps=20
        )
        np.testing.assert_allclose(worst.value, expected, rtol=1e-4)
        np.testing.assert_allclose(worst.value, g @ (worst.point - 1), rtol=1e-4)


def test_the_center_counts():
    """The loss falls in every direction, so the largest rise is zero, at the center."""
    worst = measures.worst_case_sharpness(lambda w: -jnp.sum(w**2), jnp.zeros(2), KEY, 0.1)
    assert worst.value == 0
    np.testing.assert_array_equal(worst.point, jnp.zeros(2))


def test_wrong_arguments_are_errors():
    worst_case = functools.partial(measures.worst_case_sharpness, lambda w: jnp.sum(w), jnp.ones(2))
    with pytest.raises(ValueError, match="norm must be one of l2, linf, got 'l1'"):
        worst_case(KEY, 0.1, norm="l1")
    with pytest.raises(ValueError, match="rho must be finite and at least 0"):
        worst_case(KEY, -0.1)
    with pytest.raises(ValueError, match="steps=100, random_starts=4"):
        worst_case(KEY, 0.1, steps=0)
    with pytest.raises(TypeError, match="one random key"):
        worst_case(0.1, 0.1)


def test_normalized_logits_make_a_loss_invariant_to_their_scale():
    logits = jax.random.normal(KEY, (4, 3))
    normalized = measures.normalized_logits(logits)
    np.testing.assert_allclose(measures.normalized_logits(7 * logits), normalized, atol=1e-6)
    np.testing.assert_allclose(np.std(normalized, axis=1), 1, rtol=1e-5)
    g = jax.grad(lambda z: jnp.sum(measures.normalized_logits(z)))(jnp.ones((1, 3)))
    assert jnp.isfinite(g).all()


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_auto_pgd_and_r0_agree_on_a_network(rho):
    loss_fn = measures.dataset_loss(batch_loss, digits(), batch_size=300)
    worst = jax.jit(functools.partial(measures.worst_case_sharpness, rho=rho))
    zeroth = jax.jit(functools.partial(measures.zeroth_order_flatness, rho=rho))
    value, other = (f(loss_fn, trained(), KEY).value for f in (worst, zeroth))
    assert value >= 0.99 * other
    assert other >= 0.99 * value
