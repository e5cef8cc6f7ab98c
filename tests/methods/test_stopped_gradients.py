"""Losses with ``stop_gradient``: exact and finite-difference products differ, even in sign."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from flatreg import measures

W = jnp.array([3.0, -4.0])
EXACT = [flatreg.exact_hvp, flatreg.forward_hvp, flatreg.reverse_hvp]
DIFFERENCE = flatreg.finite_difference_hvp(0.01)


def target_loss(w):
    """½‖w − sg(2w)‖², as in self-distillation. Its gradient is w − 2w."""
    return jnp.sum((w - jax.lax.stop_gradient(2 * w)) ** 2) / 2


def rounded_loss(w):
    """½‖round(w) − 1‖² with a straight-through estimator. Its gradient is round(w) − 1."""
    rounded = w + jax.lax.stop_gradient(jnp.round(w) - w)
    return jnp.sum((rounded - 1) ** 2) / 2


@pytest.mark.parametrize(
    ("loss_fn", "exact", "difference"), [(target_loss, 1, -1), (rounded_loss, 1, 0)]
)
def test_products_treat_stopped_parts_as_constants(loss_fn, exact, difference):
    """Finite differences show how the gradient changes; exact products do not."""
    grad_fn, v = jax.grad(loss_fn), jnp.array([0.6, 0.8])
    for hvp in EXACT:
        np.testing.assert_allclose(hvp(grad_fn, W)[1](v), exact * v, rtol=1e-6)
    actual = DIFFERENCE(grad_fn, W)[1](v)
    np.testing.assert_allclose(actual, difference * v, rtol=1e-3, atol=1e-6)
    by_difference = functools.partial(measures.hessian, hvp=DIFFERENCE)
    np.testing.assert_allclose(measures.hessian(loss_fn, W)(v), exact * v, rtol=1e-6)
    np.testing.assert_allclose(by_difference(loss_fn, W)(v), actual)


@pytest.mark.parametrize(
    "factory",
    [flatreg.gradient_norm_penalty, flatreg.gradient_regularization, flatreg.gam],
    ids=lambda factory: factory.__name__,
)
def test_penalties_have_opposite_signs_for_a_stopped_target(factory):
    grad_fn = jax.grad(target_loss)
    g = grad_fn(W)

    def penalty(hvp):
        tx = factory(0.1, hvp=hvp)
        return tx.update(g, tx.init(W), W, grad_fn=grad_fn)[0] - g

    assert jnp.linalg.norm(penalty(flatreg.exact_hvp)) > 0.05
    # GAM's two products are evaluated at different points, so its penalties differ in length, too.
    exact, difference = (x / jnp.linalg.norm(x) for x in map(penalty, (EXACT[0], DIFFERENCE)))
    np.testing.assert_allclose(difference, -exact, rtol=1e-3)
