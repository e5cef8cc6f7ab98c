"""Bounds of trained networks: no slope that is found exceeds them. Dense Jacobians, float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import lipschitz
from tests.support.networks.lipschitz_networks import MODELS, trained_network, upper_bound

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
every_network = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "cnn" else [pytest.mark.nightly]) for name in MODELS],
)


def quotients(network, pairs):
    """‖f(x) − f(y)‖ / ‖x − y‖ for every pair."""
    a, b = pairs
    length = functools.partial(jnp.linalg.norm, axis=1)
    apart = length((a - b).reshape(len(a), -1))
    return jax.jit(lambda a, b: length(network(a) - network(b)))(a, b) / apart


def dense_jacobian(network, x):
    return np.asarray(jax.jit(jax.jacobian(lambda x: network(x[None])[0]))(x).reshape(10, -1))


def random_pairs(x, count=10_000):
    """Pairs of a noisy data point and a point at a random distance from 1e-4 to 10."""
    keys = jax.random.split(jax.random.key(0), 4)
    start = x[jax.random.randint(keys[0], (count,), 0, len(x))]
    start = start + jax.random.normal(keys[1], start.shape, x.dtype)
    away = jax.random.normal(keys[2], start.shape, x.dtype)
    away = away / jnp.linalg.norm(away.reshape(count, -1), axis=1)[:, None, None, None]
    distance = 10 ** jax.random.uniform(keys[3], (count, 1, 1, 1), x.dtype, -4.0, 1.0)
    return start, start + distance * away


@functools.cache
def lower_bound(name):
    network = trained_network(name)
    key = jax.random.key(0)
    search = jax.jit(
        lambda x: lipschitz.lipschitz_lower_bound(network.apply, network.params, x, key, steps=40)
    )
    return search(network.x[:8])


@pytest.mark.nightly
@every_network
def test_no_difference_quotient_is_above_the_bound(name, record_property):
    """‖f(x) − f(y)‖ / ‖x − y‖ ≤ bound for random pairs and for one in the steepest direction."""
    network, upper = trained_network(name), upper_bound(name).upper
    at_random = float(quotients(network, random_pairs(network.x)).max())
    lower, point = lower_bound(name)
    steepest = np.linalg.svd(dense_jacobian(network, point))[2][0].reshape(point.shape)
    near = float(quotients(network, (point[None], point[None] + 1e-7 * steepest))[0])
    record_property("upper over lower", float(upper / lower))
    assert near == pytest.approx(float(lower), rel=1e-4)  # the limit of quotients
    assert at_random <= lower <= upper
    assert near <= upper


@pytest.mark.slow
@pytest.mark.nightly_except("mlp")
@pytest.mark.parametrize("name", ["mlp", "nnx"])
def test_no_difference_of_outputs_exceeds_its_pair_bound(name):
    """The Lipschitz constant of f(x)ᵢ − f(x)ⱼ is at most ``pairs[i, j]``, which is ≤ √2·upper."""
    network, pairs = trained_network(name), upper_bound(name).pairs
    jacobian = dense_jacobian(network, lower_bound(name).point)
    slopes = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=2)
    assert (slopes <= pairs * (1 + 1e-9)).all()
    a, b = random_pairs(network.x, 1000)
    change = jax.jit(lambda x: network(x))(a) - network(b)
    apart = jnp.linalg.norm((a - b).reshape(1000, -1), axis=1)
    steepest = jnp.abs(change[:, :, None] - change[:, None]) / apart[:, None, None]
    assert (steepest.max(axis=0) <= pairs).all()
    assert (pairs <= math.sqrt(2) * upper_bound(name).upper * (1 + 1e-12)).all()
    np.testing.assert_array_equal(jnp.diag(pairs), 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_lower_bound_exceeds_the_steepest_example(name):
    network = trained_network(name)
    measure = jax.jit(lambda x: lipschitz.input_sensitivity(network, x))
    at_data = measure(network.x[:8]).max_spectral
    lower, point = lower_bound(name)
    assert lower > 1.02 * at_data
    np.testing.assert_allclose(lower, np.linalg.norm(dense_jacobian(network, point), 2))


def test_ascent_finds_the_steepest_point_of_a_smooth_function():
    weights = np.random.default_rng(0).normal(size=(5, 3))
    f = lambda w, x: jnp.tanh(x @ w)  # noqa: E731  # steepest at 0, where J = Wᵀ
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)))
    search = jax.jit(functools.partial(lipschitz.lipschitz_lower_bound, f, steps=200))
    found = search(weights, x, jax.random.key(0))
    norm = np.linalg.norm(weights, 2)
    assert 0.98 * norm < found.lower <= norm


def test_the_lower_bound_in_float32_is_exact_up_to_rounding():
    """For a linear function, the bound differs from the norm by less than two units of rounding."""

    @jax.jit
    def lower(matrix):
        linear = lambda w, x: jnp.matmul(x, w, precision="highest")  # noqa: E731
        x = jnp.ones((1, 50), matrix.dtype)
        return lipschitz.lipschitz_lower_bound(linear, matrix, x, jax.random.key(0), steps=0).lower

    matrices = np.random.default_rng(0).normal(size=(50, 50, 10)).astype(np.float32)
    norms = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    above = np.array([lower(matrix) for matrix in matrices]) / norms - 1
    assert np.abs(above).max() < 2 * np.finfo(np.float32).eps


def test_lower_bound_errors_show_what_is_valid():
    with pytest.raises(ValueError, match="steps must be"):
        lipschitz.lipschitz_lower_bound(jnp.dot, 1.0, jnp.ones((2, 3)), KEY, steps=-1)
    with pytest.raises(ValueError, match=r"\(1,\) or \(1, outputs\)"):
        lipschitz.lipschitz_lower_bound(jnp.multiply, 1.0, jnp.ones((2, 3, 4)), KEY)
