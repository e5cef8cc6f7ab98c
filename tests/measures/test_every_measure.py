"""Properties of every measure: devices, precision and errors; and curvature of a convolution."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flatreg import measures
from tests.support.trained import (
    adam,
    batch_loss,
    digits,
    flat_loss,
    in_bfloat16_and_float32,
    trained,
)

KEY = jax.random.key(0)
BALL = {"steps": 5, "random_starts": 1}
# Each measure by its name, as a function from a loss, parameters and a key to numbers.
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
    # The radius is large enough that the change of the Hessian is far above its rounding error.
    "hessian_lipschitz": lambda f, w, key: (
        measures.hessian_lipschitz(f, w, key, 0.3, starts=1, steps=2).value
    ),
    "implicit_gradient_regularizer": lambda f, w, key: measures.implicit_gradient_regularizer(f, w)[
        :2
    ],
    "noise_robustness": lambda f, w, key: measures.noise_robustness(
        f, w, key, jnp.array([0.1]), draws=2
    ),
    "expected_sharpness": lambda f, w, key: measures.expected_sharpness(f, w, key, 0.1, draws=2),
    "stability": lambda f, w, key: measures.stability(f, w, key, learning_rate=0.1)[:3],
    "preconditioned stability": lambda f, w, key: measures.stability(
        f, w, key, learning_rate=0.1, opt_state=_adam_state(w)
    )[:3],
    "batch_sharpness": lambda f, w, key: measures.batch_sharpness(
        lambda w, scale: scale * f(w), w, jnp.array([0.5, 1.0])
    ),
    "critical_sharpness": lambda f, w, key: measures.critical_sharpness(
        f, w, jax.tree.map(lambda x: -jnp.asarray(x, jnp.float32), w), start=0.1
    ),
    "worst_case_sharpness": lambda f, w, key: (
        measures.worst_case_sharpness(f, w, key, 0.1, steps=5, random_starts=1).value
    ),
    "adaptive worst case in a box": lambda f, w, key: (
        measures.worst_case_sharpness(
            f,
            w,
            key,
            0.01,
            norm="linf",
            scale=lambda w: jax.tree.map(jnp.abs, w),
            steps=5,
            random_starts=1,
        ).value
    ),
    "zeroth_and_first_order_flatness": lambda f, w, key: [
        found.value for found in measures.zeroth_and_first_order_flatness(f, w, key, 0.1, **BALL)
    ],
    "per_block": lambda f, w, key: {
        name: pairs.values
        for name, pairs in measures.per_block(
            measures.top_eigenpairs,
            f,
            w,
            key,
            {"all": lambda path: True, "kernels": lambda path: "kernel" in path},
        ).items()
    },
    "local_learning_coefficient": lambda f, w, key: measures.local_learning_coefficient(
        f, w, key, n=256, chains=2, burn_in=2, draws=4
    )[:2],
    "barrier": lambda f, w, key: measures.barrier(f, w, _halved(w), points=5)[:2],
    "bezier_path": lambda f, w, key: (
        measures.bezier_path(f, w, _halved(w), key, steps=2, points=5).losses
    ),
}

every_measure = pytest.mark.parametrize("name", MEASURES)


def _adam_state(params):
    """A state of Adam with different second moments."""
    state = optax.adam(0.1).init(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params))
    nu = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) ** 2, params)
    return (state[0]._replace(nu=nu, count=jnp.int32(10_000)), *state[1:])


def _halved(params):
    return jax.tree.map(lambda x: x / 2, params)


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


@pytest.mark.slow
@pytest.mark.nightly_except("8-*Explicit-*")
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


@pytest.mark.nightly
@every_measure
def test_bfloat16_parameters_are_measured_in_float32(name):
    both = in_bfloat16_and_float32(trained())
    actual, expected = (jax.jit(MEASURES[name])(loss(), w, KEY) for w in both)
    assert_close(actual, expected, 1e-5)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype(np.float32)}


def test_the_loss_may_be_wider_than_the_parameters(x64):
    """A loss in float64 of parameters in float32, for example because the data are in float64."""
    params = {"kernel": jnp.ones((2, 2), jnp.float32), "bias": jnp.ones(2, jnp.float32)}
    x = np.random.default_rng(0).normal(size=(3, 2))

    def loss_fn(params):
        return jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"]) ** 2)

    assert jax.eval_shape(loss_fn, params).dtype == np.float64
    for measure in MEASURES.values():
        jax.eval_shape(lambda w, measure=measure: measure(loss_fn, w, KEY), params)


def test_factors_may_be_wider_than_the_parameters(x64):
    """Factors in float64, such as an array of NumPy, of parameters in float32."""
    options = {"scale": lambda params: np.array([1.0, 2.0, 3.0])}
    required = {"key": KEY, "rho": 0.1, "sigma": 0.1, "sigmas": jnp.array([0.1]), "drop": 0.1}
    params = jnp.ones(3, jnp.float32)

    def loss_fn(w):
        return jnp.sum(jnp.array([1.0, 2.0, 4.0], jnp.float32) * w**2) / 2

    functions = filter(inspect.isfunction, (getattr(measures, name) for name in measures.__all__))
    signatures = {function: inspect.signature(function).parameters for function in functions}
    scaled = {function: names for function, names in signatures.items() if "scale" in names}
    assert measures.top_eigenpairs in scaled
    for function, names in scaled.items():
        given = {name: value for name, value in required.items() if name in names} | options
        jax.eval_shape(lambda w, f=function, given=given: f(loss_fn, w, **given), params)
    assert measures.trace(loss_fn, params, probes=None, **options).value == 1 + 2 * 4 + 4 * 9


@pytest.mark.slow
@every_measure
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"w": jnp.arange(3)}, TypeError, "leaf of dtype int32, .* close over everything else"),
        ({}, ValueError, "no weights: pass the trained parameters"),
    ],
    ids=["integers", "empty"],
)
def test_parameters_without_float_weights_are_an_error(name, params, error, message):
    with pytest.raises(error, match=message):
        MEASURES[name](lambda params: jnp.float32(0), params, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace", "top_eigenpairs", "zeroth_order_flatness"])
def test_a_loss_that_is_not_a_scalar_is_an_error(name):
    with pytest.raises(TypeError, match=r"lambda params: loss_fn\(params\)\[0\]"):
        MEASURES[name](lambda w: (jnp.sum(w), 0), jnp.ones(3), KEY)
    with pytest.raises(TypeError, match=r"loss_fn\(params\).mean\(\)"):
        MEASURES[name](lambda w: w, jnp.ones(3), KEY)


@pytest.mark.slow
def test_curvature_of_a_convolutional_network_is_exact():
    """Two strided convolutions and a dense layer, 264 weights, in float32 and in batches.

    Eigenvalues and trace agree with the dense Hessian in float64.
    """
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

    params = adam(cnn_loss, params, (x, labels), 60)
    with jax.enable_x64(True):
        flat_fn, flat = flat_loss(cnn_loss, params, (x, labels))
        expected = np.linalg.eigvalsh(jax.jit(jax.hessian(flat_fn))(flat))
    whole = measures.dataset_loss(cnn_loss, (x, labels), batch_size=64)
    pairs = measures.top_eigenpairs(whole, params, KEY, 5, steps=20)
    np.testing.assert_allclose(pairs.values, expected[::-1][:5], atol=1e-5 * expected[-1])
    trace = measures.trace(whole, params, KEY, probes=64)
    assert abs(trace.value - expected.sum()) < 4 * trace.standard_error
