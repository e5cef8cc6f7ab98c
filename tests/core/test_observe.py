"""``observe`` reports ‖ε‖. The tests of Linen and NNX check ‖g‖, ‖d‖ and cos(g, d)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.problems import loss_fn, tanh_net

SAM = flatreg.sam(0.3)


def updates(tx, count=1):
    """‖ε‖ after each of ``count`` jitted updates."""
    params, batch = tanh_net()
    grad_fn = jax.grad(lambda params: loss_fn(params, batch))
    update = jax.jit(lambda s: tx.update(grad_fn(params), s, params, grad_fn=grad_fn)[1])
    state, norms = tx.init(params), []
    for _ in range(count):
        state = update(state)
        norms.append(float(optax.tree.get(state, "perturbation_norm")))
    return norms


def farthest(method):
    """The largest distance from the parameters at which an update calls the oracle."""
    params, batch = tanh_net()
    distances = [0.0]

    def grad_fn(point):
        distances.append(float(optax.tree.norm(optax.tree.sub(point, params))))
        return jax.grad(loss_fn)(point, batch)

    grads = jax.grad(loss_fn)(params, batch)
    method.update(grads, method.init(params), params, grad_fn=grad_fn)
    return max(distances)


@pytest.mark.nightly_except("sam", "pgn", "none", "near_far", "far_near")
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SAM, 0.3),
        (flatreg.penalized_gradient(0.2, 0.8), 0.2),
        (flatreg.sam(optax.linear_schedule(0.1, 0.2, 1)), 0.1),
        (flatreg.combine(flatreg.sam(0.1), SAM), 0.3),
        (flatreg.combine(SAM, flatreg.sam(0.1)), 0.3),
        (flatreg.asam(0.5), None),
        (flatreg.gam_accelerated(0.2, 0.05), None),
        (flatreg.gradient_norm_penalty(0.1, hvp=flatreg.finite_difference_hvp(0.02)), 0.02),
        (optax.identity(), 0.0),
    ],
    ids=[
        "sam",
        "pgn",
        "schedule",
        "near_far",
        "far_near",
        "asam",
        "gam_accelerated",
        "differences",
        "none",
    ],
)
def test_perturbation_norm_is_the_largest_distance(method, expected):
    method = optax.with_extra_args_support(method)
    (seen,) = updates(flatreg.observe(method))
    np.testing.assert_allclose(seen, farthest(method), rtol=1e-5)
    if expected is not None:
        np.testing.assert_allclose(seen, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [flatreg.every(SAM, 2), flatreg.gam(0.1, 0.5)],
    ids=["in a cond", "in a linearization"],
)
def test_perturbation_that_cannot_be_observed_is_nan(method):
    assert np.isnan(updates(flatreg.observe(method)))


def test_observe_works_with_debug_nans():
    with jax.debug_nans(True):
        assert updates(flatreg.observe(SAM), count=2)[1] > 0


def test_observe_inside_every_keeps_the_last_observation():
    seen = updates(flatreg.every(flatreg.observe(SAM), 2), count=2)
    np.testing.assert_allclose(seen, 0.3, rtol=1e-5)


def test_perturbation_norm_includes_bfloat16_rounding():
    params = jnp.full(10_000, 1.0, jnp.bfloat16)
    grad_fn = jax.grad(lambda w: jnp.mean(jnp.square(w)))
    tx = flatreg.observe(flatreg.sam(0.05))
    _, state = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    assert state.observation.perturbation_norm == 0
