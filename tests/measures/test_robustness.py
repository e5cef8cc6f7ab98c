"""Noise on the weights, and slices through the loss, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import measures
from tests.support.trained import batch_loss, digits, trained

KEY = jax.random.key(0)
H = np.diag([1.0, 2.0, 5.0]) + 0.5


def quadratic(w):
    return w @ jnp.asarray(H, jnp.float32) @ w / 2


def test_expected_sharpness_of_a_quadratic_is_half_the_trace():
    rise = measures.expected_sharpness(quadratic, jnp.zeros(3), KEY, 0.3, draws=4000)
    assert abs(rise.value - 0.3**2 * np.trace(H) / 2) < 4 * rise.standard_error
    assert rise.standard_error < 0.02


def test_relative_noise_is_that_of_the_scaled_hessian():
    w = jnp.array([1.0, -2.0, 0.5])
    absolute = functools.partial(jax.tree.map, jnp.abs)
    rise = measures.expected_sharpness(quadratic, w, KEY, 0.1, draws=4000, scale=absolute)
    exact = 0.1**2 * np.diag(H) @ np.square(w) / 2
    assert abs(rise.value - exact) < 4 * rise.standard_error


def test_a_standard_error_is_the_spread_over_keys():
    def rise(key):
        return measures.expected_sharpness(quadratic, jnp.ones(3), key, 0.3, draws=64)

    many = jax.vmap(rise)(jax.random.split(KEY, 300))
    np.testing.assert_allclose(np.std(many.value), np.mean(many.standard_error), rtol=0.15)


def test_all_sigmas_share_their_draws():
    curve = measures.noise_robustness(quadratic, jnp.zeros(3), KEY, jnp.array([0.0, 0.1, 0.2]))
    np.testing.assert_allclose(curve.value[2], 4 * curve.value[1], rtol=1e-5)
    assert curve.value[0] == curve.standard_error[0] == 0


def test_noise_spoils_a_trained_networks_loss_more_and_more():
    loss_fn = measures.dataset_loss(batch_loss, digits(), batch_size=100)
    measure = jax.jit(functools.partial(measures.noise_robustness, draws=8))
    curve = measure(loss_fn, trained(), KEY, jnp.array([0.0, 0.1, 0.2, 0.4]))
    np.testing.assert_allclose(curve.value[0], loss_fn(trained()), rtol=1e-5)
    assert np.all(np.diff(curve.value) > 0)


def test_filters_of_a_direction_have_the_length_of_the_weights():
    params = {"conv": jax.random.normal(KEY, (3, 3, 2, 4)), "bias": jnp.ones(4)}
    direction = measures.filter_normalized(params, KEY)
    lengths = [np.sqrt(np.sum(np.square(p["conv"]), axis=(0, 1, 2))) for p in (params, direction)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert not direction["bias"].any()


def test_a_slice_along_an_eigenvector_is_a_parabola_of_its_eigenvalue():
    pair = measures.top_eigenpairs(quadratic, jnp.zeros(3), KEY)
    t = jnp.linspace(-1, 1, 5)
    losses = measures.loss_slice(quadratic, jnp.zeros(3), (pair.vectors[0], t))
    np.testing.assert_allclose(losses, pair.values[0] * t**2 / 2, atol=1e-5)


def test_a_surface_is_the_loss_at_every_point_of_its_grid():
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


def test_a_loss_of_each_example_is_told_to_take_the_mean():
    for measure in (
        lambda f, w: measures.loss_slice(f, w, (w, [0.1])),
        lambda f, w: measures.noise_robustness(f, w, KEY, [0.1]),
    ):
        with pytest.raises(TypeError, match=r"\.mean\(\)"):
            measure(lambda w: w**2, jnp.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w: measures.expected_sharpness(f, w, KEY, 0.1, draws=1), "draws must be at"),
        (lambda f, w: measures.noise_robustness(f, w, KEY, 0.1), r"sigmas=jnp.array\(\[0.1\]\)"),
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
def test_bad_input_is_told_the_call_that_mends_it(call, message):
    with pytest.raises(ValueError, match=message):
        call(quadratic, jnp.ones(3))
