"""What the compare command is made of: networks, methods, data, measures."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.common import augment as _augment
from benchmarks.common import data as _data
from benchmarks.common import measuring as _measure
from benchmarks.common import methods as _methods
from benchmarks.common.models import build as _models
from benchmarks.common.models import convolution as _convolution


@pytest.mark.parametrize("model", _models.NAMES)
@pytest.mark.parametrize("size", [8, 11])
def test_models_compute_in_their_dtype_with_parameters_in_float32(model, size):
    x = np.zeros((2, size, size, 3), np.float32)
    network = _models.build(model, _data.Dataset(x, np.zeros(2), x, np.zeros(2), 5))
    for dtype in (jnp.bfloat16, jnp.float32):
        own = network.clone(dtype=dtype)
        init, apply = (functools.partial(f, train=False) for f in (own.init, own.apply))
        variables = jax.eval_shape(init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        logits = jax.eval_shape(apply, variables, x)
        assert (logits.shape, logits.dtype) == ((2, 5), dtype)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ("mlp:width=7:dropout=0.5", {"hidden": (7, 7), "dropout": 0.5}),
        ("cnn:width=4", {"channels": (4, 8, 8)}),
        ("resnet18:width=4:blocks=1", {"widths": (4, 8, 16, 32), "blocks": 1}),
        ("vit:width=12:depth=3:heads=2", {"width": 12, "depth": 3, "heads": 2}),
    ],
)
def test_a_network_takes_settings_after_its_name(spec, fields):
    x = np.zeros((2, 8, 8, 3), np.float32)
    network = _models.build(spec, _data.Dataset(x, np.zeros(2), x, np.zeros(2), 5))
    assert {name: getattr(network, name) for name in fields} == fields


def test_augmentation_shifts_and_mirrors_each_image_on_its_own():
    image = jnp.arange(1.0, 8 * 16 + 1).reshape(8, 16, 1)
    augment = jax.jit(_augment.crop_and_flip)
    found = np.asarray(augment(jax.random.key(0), jnp.tile(image, (400, 1, 1, 1))))
    padded = np.pad(image, ((1, 1), (2, 2), (0, 0)))
    crops = [padded[i : i + 8, j : j + 16] for i in range(3) for j in range(5)]
    expected = {crop.tobytes() for one in crops for crop in (one, one[:, ::-1])}
    assert {one.tobytes() for one in found} == expected


@pytest.mark.parametrize(
    ("spec", "label", "cost"),
    [
        ("sgd", "sgd", 1),
        ("sam", "sam", 2),
        (" sam:rho=0.20 ", "sam:rho=0.2", 2),
        ("sam:rho=0.2:every=5", "sam:rho=0.2:every=5", 1.2),
        ("sam:rho=0.2:after=30:every=5", "sam:rho=0.2:after=30:every=5", 1.2),
        ("spectral_norm_penalty:penalty=0.1", "spectral_norm_penalty:penalty=0.1", 1),
        ("gradient_norm_penalty:penalty=0.1:ord=1", "gradient_norm_penalty:penalty=0.1:ord=1", 3),
        ("gam", "gam", 6),  # what it needs has a value to begin with
        ("sam:rho=0.1+gam:rho=0.1:alpha=1", "sam:rho=0.1+gam:rho=0.1:alpha=1", 7),
        ("sam:rho=0.4:ascent_fraction=0.1", "sam:rho=0.4:ascent_fraction=0.1", 1.1),
    ],
)
def test_grammar_of_methods(spec, label, cost):
    (method,) = _methods.parse(spec, "sgd")
    assert method.label == label
    assert method.cost == pytest.approx(cost)


def test_label_noise_replaces_the_fraction_by_other_classes():
    labels = np.arange(1000, dtype=np.int32) % 10
    noisy = _data.with_label_noise(labels, 10, 0.4, seed=0)
    assert (noisy != labels).sum() == 400
    assert set(noisy) == set(range(10))
    np.testing.assert_array_equal(noisy, _data.with_label_noise(labels, 10, 0.4, seed=0))
    assert (noisy != _data.with_label_noise(labels, 10, 0.4, seed=1)).any()


def test_validation_examples_come_out_of_the_training_set():
    test, validation = (_data.load("digits", None, 500, name) for name in ("test", "validation"))
    assert len(validation.x_train) == len(test.x_train) == 500
    pixels = {x.tobytes() for x in validation.x_test.astype(np.float16)}
    assert len(validation.x_test) == 287
    assert not pixels & {x.tobytes() for x in validation.x_train.astype(np.float16)}


def test_flatness_is_that_of_the_dense_hessian():
    model = _models.Mlp((5,), 3)
    keys = jax.random.split(jax.random.key(0), 2)
    x, labels = jax.random.normal(keys[0], (40, 4)), jnp.arange(40) % 3
    variables = model.init(keys[1], x, train=False)
    flat, unravel = ravel_pytree(variables)

    def loss(flat):
        logits = model.apply(unravel(flat), x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = _measure._flatness(model, True, variables, (x, labels), jax.random.key(0))
    eigenvalues = np.linalg.eigvalsh(jax.hessian(loss)(flat))
    assert found["lambda_max"] == pytest.approx(eigenvalues[-1], rel=1e-3)
    error = found["trace"] - eigenvalues.sum()
    assert abs(error) < 4 * found["trace_standard_error"]
    slope = np.linalg.norm(jax.grad(loss)(flat))
    rho = _measure.RHO
    second_order = rho * slope + rho**2 * eigenvalues[-1] / 2  # at most, up to the third order
    assert rho * slope < found["zeroth_order_flatness"] < 1.01 * second_order
    assert found["zeroth_order_flatness"] <= found["first_order_flatness"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 0))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_convolution_by_patches_is_xlas(padding, strides):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    layers = [
        nn.Conv(4, (3, 2), strides, padding, conv_general_dilated=convolve)
        for convolve in (None, _convolution.by_patches)
    ]
    params = layers[0].init(keys[1], x)
    expected, found = (layer.apply(params, x) for layer in layers)
    np.testing.assert_allclose(found, expected, atol=1e-5)
