"""Slices through the loss and interpolation between solutions, against direct evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import measures
from tests.support.quadratic import quadratic

KEY = jax.random.key(0)


def test_filters_of_a_direction_have_the_norm_of_the_weights():
    params = {"conv": jax.random.normal(KEY, (3, 3, 2, 4)), "bias": jnp.ones(4)}
    direction = measures.filter_normalized(params, KEY)
    lengths = [np.sqrt(np.sum(np.square(p["conv"]), axis=(0, 1, 2))) for p in (params, direction)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert not direction["bias"].any()


@pytest.mark.slow
def test_a_slice_along_an_eigenvector_is_a_parabola():
    """L(tv) = λt²/2 for a quadratic with Hv = λv and ‖v‖ = 1."""
    pair = measures.top_eigenpairs(quadratic, jnp.zeros(3), KEY)
    t = jnp.linspace(-1, 1, 5)
    losses = measures.loss_slice(quadratic, jnp.zeros(3), (pair.vectors[0], t))
    np.testing.assert_allclose(losses, pair.values[0] * t**2 / 2, atol=1e-5)


def test_a_surface_holds_the_loss_at_every_point_of_its_grid():
    axes = (jnp.eye(3)[0], jnp.array([0.0, 1.0])), (jnp.eye(3)[2], jnp.array([-1.0, 0.0, 2.0]))
    surface = measures.loss_slice(quadratic, jnp.ones(3), *axes)
    expected = [[quadratic(jnp.array([1 + a, 1, 1 + b])) for b in axes[1][1]] for a in axes[0][1]]
    np.testing.assert_allclose(surface, expected, rtol=1e-6)


def test_interpolation_ends_at_the_two_solutions():
    a, b = jnp.array([1.0, 2.0, 3.0]), jnp.array([-1.0, 0.0, 1.0])
    losses = measures.interpolate(quadratic, a, b, jnp.array([0.0, 0.5, 1.0]))
    expected = [quadratic(a), quadratic((a + b) / 2), quadratic(b)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


PAIRS = r"loss_slice\(loss_fn, params, \(direction, jnp.linspace\(-1, 1, 21\)\)\)"


def test_a_loss_per_example_is_an_error_that_shows_the_mean():
    with pytest.raises(TypeError, match=r"\.mean\(\)"):
        measures.loss_slice(lambda w: w**2, jnp.ones(3), (jnp.ones(3), [0.1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w: measures.interpolate(f, w, w, 0.5), r"positions=jnp.linspace\(0, 1, 11\)"),
        (lambda f, w: measures.loss_slice(f, w), PAIRS),
        (lambda f, w: measures.loss_slice(f, w, (w, 0.1)), PAIRS),
        (lambda f, w: measures.loss_slice(f, w, w, w), PAIRS),
        (lambda f, w: measures.loss_slice(f, w, (jnp.stack([w, w]), [0.1])), PAIRS),
        (lambda f, w: measures.interpolate(f, w, jnp.stack([w, w]), [0.1]), "pass the parameters"),
        (lambda f, w: measures.loss_slice(sum, [w, w], [w, w], w), PAIRS),
        (lambda f, w: measures.loss_slice(sum, [w, w], (w, [w, w])), PAIRS),
    ],
)
def test_errors_show_a_corrected_call(call, message):
    with pytest.raises(ValueError, match=message):
        call(quadratic, jnp.ones(3))
