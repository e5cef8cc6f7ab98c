"""The linear maps found in a model compute what its layers compute."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flatreg import lipschitz
from flatreg.lipschitz import Convolution, Dense

KEY = jax.random.key(0)
LAYERS = {
    "strided": nn.Conv(4, (3, 2), strides=2),
    "valid": nn.Conv(4, (3, 3), padding="VALID", use_bias=False),
    "circular": nn.Conv(4, (3, 2), padding="CIRCULAR"),
    "circular, strided, dilated": nn.Conv(4, (2, 3), 2, "CIRCULAR", kernel_dilation=2),
    "grouped, dilated": nn.Conv(6, (3, 3), kernel_dilation=(1, 2), feature_group_count=2),
    "bfloat16": nn.Conv(4, (3, 3), dtype=jnp.bfloat16),
    "transposed": nn.ConvTranspose(3, (3, 2), strides=(2, 3)),
    "transposed kernel": nn.ConvTranspose(3, (3, 2), strides=(2, 2), transpose_kernel=True),
    "dense": nn.Dense(5),
    "several axes": nn.DenseGeneral((2, 3), axis=(1, 2, 3)),
}


def example(layer):
    return jax.random.normal(KEY, (2, 7, 6, 4))


@pytest.mark.parametrize("name", LAYERS)
def test_the_map_of_a_layer_computes_its_output(name):
    layer, x = LAYERS[name], example(name)
    variables = layer.init(KEY, x)
    kernel = variables["params"]["kernel"]
    maps = lipschitz.linear_maps(layer.apply, jax.eval_shape(layer.init, KEY, x), x)
    assert list(maps) == ["params/kernel"]
    linear_map = maps["params/kernel"]
    actual = linear_map.apply(kernel, x[0] if name != "dense" else x[0, 0, 0])
    expected = layer.apply(variables, x)[0]
    tolerance = 0.05 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(
        actual, np.float32(expected if name != "dense" else expected[0, 0]), atol=tolerance
    )


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.remat(nn.Conv)(4, (3, 3), name="first")(x))
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (1, 1), name="second")(x))
        for _ in range(2):
            x = nn.Dense(4, name="twice")(x) if _ == 0 else x
        return nn.Dense(3, name="last")(jax.jit(nn.silu)(x.mean((1, 2))))


def test_only_kernels_are_listed_also_inside_remat_and_jit():
    x = example(None)
    maps = lipschitz.linear_maps(Network().apply, Network().init(KEY, x), x)
    first = Convolution((7, 6, 4), padding=((1, 1), (1, 1)))
    second = Convolution((7, 6, 4), padding=((0, 0), (0, 0)))
    expected = {"first": first, "last": Dense(), "second": second, "twice": Dense()}
    assert maps == {f"params/{name}/kernel": linear_map for name, linear_map in expected.items()}
    assert hash(maps["params/first/kernel"]) == hash(first)


def test_an_nnx_model_is_traced_by_merging_it():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 2, (3, 3), padding="CIRCULAR", rngs=rngs)
            self.dense = nnx.Linear(2, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))

    graphdef, params = nnx.split(Model(nnx.Rngs(0)))
    maps = lipschitz.linear_maps(lambda p, x: nnx.merge(graphdef, p)(x), params, example(None))
    expected = [Convolution((7, 6, 4), padding="CIRCULAR"), Dense()]
    assert list(maps.values()) == expected
    assert [path.split("/")[:2] for path in maps] == [["conv", "kernel"], ["dense", "kernel"]]


W, X = {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))
USES = {
    "product": (lambda p, x: x @ p["w"], Dense()),
    "transposed": (lambda p, x: x @ p["w"].T, Dense((1,))),
    "used twice": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], Dense()),
    "inside vmap": (lambda p, x: jax.vmap(lambda x: p["w"].T @ x)(x), Dense()),
    "used in two ways": (lambda p, x: x @ p["w"] @ p["w"].T, None),
    "scaled before": (lambda p, x: x @ (2 * p["w"]), None),
    "also in a penalty": (lambda p, x: x @ p["w"] + jnp.sum(p["w"] ** 2), None),
    "scale": (lambda p, x: x * p["w"][0], None),
    "embedding": (lambda p, x: p["w"][jnp.int32(x[:, 0])], None),
    "in a loop": (lambda p, x: jax.lax.fori_loop(0, 3, lambda _, x: x @ p["w"], x), None),
    "without the input": (lambda p, x: p["w"] @ p["w"] + jnp.sum(x), None),
}


@pytest.mark.parametrize(("function", "found"), USES.values(), ids=USES)
def test_a_weight_is_listed_if_all_its_uses_are_one_map(function, found):
    assert lipschitz.linear_maps(function, W, X).get("w") == found


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(4, (3, 3), padding="REFLECT"),
        nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="CIRCULAR"),
        nn.RNN(nn.SimpleCell(4)),
    ],
    ids=["reflected", "circular transposed", "recurrent"],
)
def test_layers_without_a_single_linear_map_are_not_listed(layer):
    x = example(None)[:, :, 0] if isinstance(layer, nn.RNN) else example(None)
    assert lipschitz.linear_maps(layer.apply, layer.init(KEY, x), x) == {}
