"""What every measure of a loss has in common: devices, precision, checks; and a convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flatreg import measures
from tests.support.trained import batch_loss, digits, trained

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
BALL = {"steps": 5, "random_starts": 1}
# By name: numbers of a loss, parameters and a key.
MEASURES = {
    "top_eigenpairs": lambda f, w, key: measures.top_eigenpairs(f, w, key, k=2).values,
    "trace": lambda f, w, key: measures.trace(f, w, key, probes=4),
    "diagonal": lambda f, w, key: measures.diagonal(f, w, key, probes=4).value,
    "spectral_density": lambda f, w, key: _moments(
        measures.spectral_density(f, w, key, probes=2, steps=10)
    ),
    "gradient_norm": lambda f, w, key: measures.gradient_norm(f, w),
    "zeroth_order_flatness": lambda f, w, key: (
        measures.zeroth_order_flatness(f, w, key, 0.1, **BALL).value
    ),
    "first_order_flatness": lambda f, w, key: (
        measures.first_order_flatness(f, w, key, 0.1, **BALL).value
    ),
    "hessian_lipschitz": lambda f, w, key: (
        measures.hessian_lipschitz(f, w, key, 0.1, starts=1, steps=2).value
    ),
    "implicit_gradient_regularizer": lambda f, w, key: measures.implicit_gradient_regularizer(f, w)[
        :2
    ],
    "noise_robustness": lambda f, w, key: measures.noise_robustness(
        f, w, key, jnp.array([0.1]), draws=2
    ),
    "expected_sharpness": lambda f, w, key: measures.expected_sharpness(f, w, key, 0.1, draws=2),
}

every_measure = pytest.mark.parametrize("name", MEASURES)


def _moments(density):
    return [jnp.sum(density.weights * density.nodes**power, axis=1) for power in (1, 2)]


def loss():
    data = jax.tree.map(lambda x: x[:256], digits())
    return measures.dataset_loss(batch_loss, data, batch_size=64)


@functools.cache
def on_one_device(name):
    return jax.device_get(jax.jit(MEASURES[name])(loss(), trained(), KEY))


def assert_close(actual, expected, rtol):
    for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


@every_measure
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("devices", [2, 8])
def test_values_are_the_same_on_several_devices(name, devices, axes):
    mesh = jax.make_mesh((devices,), ("data",), (axes,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        data = jax.device_put(jax.tree.map(lambda x: x[:256], digits()), P("data"))
        many = measures.dataset_loss(batch_loss, data, batch_size=64)
        params = jax.device_put(trained(), P())
        actual = jax.device_get(jax.jit(MEASURES[name])(many, params, KEY))
    assert_close(actual, on_one_device(name), 1e-5)


@every_measure
def test_bfloat16_parameters_are_measured_in_float32(name):
    halved = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), trained())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), halved)
    actual, expected = (jax.jit(MEASURES[name])(loss(), w, KEY) for w in (halved, wide))
    assert_close(actual, expected, 1e-5)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype(np.float32)}


@every_measure
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"w": jnp.arange(3)}, TypeError, "leaf of int32, .* close over the rest"),
        ({}, ValueError, "no weights: pass the parameters"),
    ],
    ids=["integers", "empty"],
)
def test_parameters_that_are_no_weights_are_told(name, params, error, message):
    with pytest.raises(error, match=message):
        MEASURES[name](lambda params: jnp.float32(0), params, KEY)


@pytest.mark.parametrize("name", ["trace", "top_eigenpairs", "zeroth_order_flatness"])
def test_a_loss_that_is_no_number_is_told(name):
    with pytest.raises(TypeError, match=r"lambda params: loss_fn\(params\)\[0\]"):
        MEASURES[name](lambda w: (jnp.sum(w), 0), jnp.ones(3), KEY)
    with pytest.raises(TypeError, match=r"loss_fn\(params\).mean\(\)"):
        MEASURES[name](lambda w: w, jnp.ones(3), KEY)


def test_curvature_of_a_convolutional_network_is_its_dense_hessians():
    """Two strided convolutions and a dense layer, 264 weights, in float32 and in batches."""
    x, labels = digits()
    x = x.reshape(-1, 8, 8, 1)
    keys = jax.random.split(KEY, 3)
    shapes = {"first": (3, 3, 1, 4), "second": (3, 3, 4, 4), "out": (16, 5)}
    params = {
        name: jax.random.normal(key, shape) / np.prod(shape[:-1]) ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def cnn_loss(params, batch):
        h, labels = batch
        for name in ("first", "second"):
            h = jax.lax.conv_general_dilated(
                h, params[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            h = jax.nn.gelu(h)
        logits = h.reshape(len(h), -1) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels % 5).mean()

    tx = optax.adam(0.02)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(cnn_loss)(params, (x, labels))
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=60)[0][0]

    params = train(params)
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(np.float64, jax.device_get(params)))
        data = jnp.asarray(x, jnp.float64), jnp.asarray(labels)
        dense = jax.jit(jax.hessian(lambda w: cnn_loss(unravel(w), data)))(flat)
        expected = np.linalg.eigvalsh(dense)
    whole = measures.dataset_loss(cnn_loss, (x, labels), batch_size=64)
    pairs = measures.top_eigenpairs(whole, params, KEY, 5, steps=20)
    np.testing.assert_allclose(pairs.values, expected[::-1][:5], atol=1e-5 * expected[-1])
    trace = measures.trace(whole, params, KEY, probes=64)
    assert abs(trace.value - expected.sum()) < 4 * trace.standard_error
