"""The networks: dtypes, settings, and the convolution by patches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common.cli import UsageError
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.models import build, convolution
from benchmarks.common.models.transformer import Transformer


@pytest.mark.nightly_except("8-*")
@pytest.mark.parametrize("model", [name for name in build.NAMES if name != "transformer"])
@pytest.mark.parametrize("size", [8, 11])
def test_networks_compute_in_their_dtype(model, size):
    """The logits have the dtype of the network; its parameters are float32 in any case."""
    x = np.zeros((2, size, size, 3), np.float32)
    network = build.build(model, Dataset(x, np.zeros(2), x, np.zeros(2), 5))
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
        ("transformer:width=8:depth=3:heads=2", {"width": 8, "depth": 3, "heads": 2}),
    ],
)
def test_settings_after_the_name_change_the_network(spec, fields):
    x = np.zeros((2, 8, 8, 3), np.float32)
    if spec.startswith("transformer"):
        x = np.zeros((2, 8), np.int32)
    network = build.build(spec, Dataset(x, np.zeros(2), x, np.zeros(2), 5))
    assert {name: getattr(network, name) for name in fields} == fields


@pytest.mark.slow
def test_the_transformer_sees_no_later_character():
    """A change of one character changes the logits from its position on, and none before."""
    model = Transformer(num_classes=11, width=8, depth=2, heads=2, dtype=jnp.bfloat16)
    tokens = jnp.arange(2 * 6).reshape(2, 6) % 11
    variables = model.init(jax.random.key(0), tokens, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.jit(functools.partial(model.apply, variables, train=False))
    before, after = logits(tokens), logits(tokens.at[:, 3].set(10))
    assert (before.shape, before.dtype) == ((2, 6, 11), jnp.bfloat16)
    same = np.asarray(before == after).all((0, 2))
    np.testing.assert_array_equal(same, [True, True, True, False, False, False])


@pytest.mark.parametrize(("spec", "dtype"), [("mlp", np.int32), ("transformer", np.float32)])
def test_text_and_images_need_their_own_networks(spec, dtype):
    x = np.zeros((2, 8), dtype)
    with pytest.raises(UsageError, match="Give --model transformer with --data text"):
        build.build(spec, Dataset(x, np.zeros(2), x, np.zeros(2), 5))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 0))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_convolution_by_patches_matches_xla(padding, strides):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    layers = [
        nn.Conv(4, (3, 2), strides, padding, conv_general_dilated=convolve)
        for convolve in (None, convolution.by_patches)
    ]
    params = layers[0].init(keys[1], x)
    expected, found = (layer.apply(params, x) for layer in layers)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def at_top_level(gradient, params, x):
    return gradient(params, x)


def in_scan(gradient, params, x):
    return jax.lax.scan(lambda carry, _: (gradient(carry, x), None), params, length=2)[0]


def in_branch(gradient, params, x):
    return jax.lax.cond(x.sum() > 0, gradient, lambda params, _: params, params, x)


def with_many_kernels(gradient, params, x):
    """Each copy of the kernels has its own images, which makes a convolution with groups."""
    copies = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
    return jax.vmap(gradient)(copies, x[:, None])


@pytest.mark.parametrize(
    ("place", "patches"),
    [(at_top_level, False), (in_scan, True), (in_branch, True), (with_many_kernels, True)],
    ids=["top level", "scan", "cond", "vmap"],
)
def test_each_program_gets_the_convolution_that_suits_it(place, patches):
    x = jnp.ones((2, 6, 6, 3))
    model = build.build("cnn", Dataset(x, jnp.zeros(2), x, jnp.zeros(2), 5), channels=(4,))
    model = model.clone(convolve=convolution.by_patches)  # which is the default on a CPU
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

    def trace(model):
        gradient = jax.grad(lambda params, x: jnp.sum(model.apply(params, x, train=False) ** 2))
        return model, jax.jit(functools.partial(place, gradient)).trace(params, x)

    chosen, traced = convolution.suited(trace, model)
    assert (chosen.convolve is convolution.by_patches) == patches
    assert ("conv_general_dilated" in str(traced.jaxpr)) != patches
