"""Expected losses under weight noise against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import measures
from tests.support.quadratic import H, quadratic
from tests.support.trained import batch_loss, digits, trained

KEY = jax.random.key(0)


def test_expected_sharpness_of_a_quadratic_is_half_the_trace():
    """E_u L(σu) − L(0) = σ² tr H/2."""
    rise = measures.expected_sharpness(quadratic, jnp.zeros(3), KEY, 0.3, draws=4000)
    assert abs(rise.value - 0.3**2 * np.trace(H) / 2) < 4 * rise.standard_error
    assert rise.standard_error < 0.02


def test_relative_noise_gives_the_trace_of_the_scaled_hessian():
    """With T = |w| the expected sharpness is σ² tr(THT)/2, here at the minimum w of the loss."""
    w = jnp.array([1.0, -2.0, 0.5])
    absolute = functools.partial(jax.tree.map, jnp.abs)
    rise = measures.expected_sharpness(
        lambda v: quadratic(v - w), w, KEY, 0.1, draws=4000, scale=absolute
    )
    exact = 0.1**2 * np.diag(H) @ np.square(w) / 2
    assert abs(rise.value - exact) < 4 * rise.standard_error < 0.1 * exact


def test_the_standard_error_is_the_spread_over_keys():
    def rise(key):
        return measures.expected_sharpness(quadratic, jnp.ones(3), key, 0.3, draws=64)

    many = jax.vmap(rise)(jax.random.split(KEY, 300))
    np.testing.assert_allclose(np.std(many.value), np.mean(many.standard_error), rtol=0.15)


def test_the_standard_error_of_two_draws_is_unbiased():
    """The mean of its square over keys is the variance of the estimate."""
    sigmas = jnp.array([0.1, 0.3])

    def both(key):
        curve = measures.noise_robustness(quadratic, jnp.ones(3), key, sigmas, draws=2)
        rise = measures.expected_sharpness(quadratic, jnp.ones(3), key, 0.3, draws=2)
        return jax.tree.map(jnp.atleast_1d, (curve, rise))

    for estimate in jax.vmap(both)(jax.random.split(KEY, 4000)):
        squares = np.mean(np.square(estimate.standard_error), axis=0)
        np.testing.assert_allclose(squares, np.var(estimate.value, axis=0), rtol=0.2)


def test_all_noise_levels_share_their_draws():
    """So the expected rise of a quadratic grows exactly as σ²."""
    curve = measures.noise_robustness(quadratic, jnp.zeros(3), KEY, jnp.array([0.0, 0.1, 0.2]))
    np.testing.assert_allclose(curve.value[2], 4 * curve.value[1], rtol=1e-5)
    assert curve.value[0] == curve.standard_error[0] == 0


def test_the_loss_of_a_trained_network_rises_with_the_noise():
    loss_fn = measures.dataset_loss(batch_loss, digits(), batch_size=100)
    measure = jax.jit(functools.partial(measures.noise_robustness, draws=8))
    curve = measure(loss_fn, trained(), KEY, jnp.array([0.0, 0.1, 0.2, 0.4]))
    np.testing.assert_allclose(curve.value[0], loss_fn(trained()), rtol=1e-5)
    assert np.all(np.diff(curve.value) > 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: measures.expected_sharpness(quadratic, jnp.ones(3), KEY, 0.1, draws=1),
            ValueError,
            "draws must be at",
        ),
        (
            lambda: measures.noise_robustness(quadratic, jnp.ones(3), KEY, 0.1),
            ValueError,
            r"sigmas=jnp.array\(\[0.1\]\)",
        ),
        (
            lambda: measures.noise_robustness(lambda w: w**2, jnp.ones(3), KEY, [0.1]),
            TypeError,
            r"\.mean\(\)",
        ),
    ],
)
def test_errors_show_a_corrected_call(call, error, message):
    with pytest.raises(error, match=message):
        call()
