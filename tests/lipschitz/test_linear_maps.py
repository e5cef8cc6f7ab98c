"""The linear maps found in a model compute what its layers compute."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flatreg import lipschitz
from flatreg._core.tree import named_leaves
from flatreg.lipschitz import Convolution, Dense, Masked
from tests.support.kernels import exact_norm

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
MASK = np.tri(4, 4, 1)
USES = {
    "product": (lambda p, x: x @ p["w"], Dense()),
    "transposed": (lambda p, x: x @ p["w"].T, Dense((1,))),
    "used twice": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], Dense()),
    "inside vmap": (lambda p, x: jax.vmap(lambda x: p["w"].T @ x)(x), Dense()),
    "and its transpose": (lambda p, x: x @ p["w"] @ p["w"].T, Dense()),
    "scaled": (lambda p, x: x @ (2 * p["w"]), Masked(Dense(), np.array(2.0))),
    "masked": (lambda p, x: x @ (p["w"] * MASK), Masked(Dense(), MASK)),
    "masked in a jit": (
        lambda p, x: jax.jit(lambda w: x @ (w.T * jnp.tril(jnp.ones((4, 4)))))(p["w"]),
        Masked(Dense((1,)), np.triu(np.ones((4, 4)))),
    ),
    "input and constants": (
        lambda p, x: jnp.concatenate([x[:, :3], jnp.ones((2, 1))], 1) @ p["w"],
        Masked(Dense(), np.array([[1.0], [1], [1], [0]])),
    ),
    "also in a penalty": (lambda p, x: x @ p["w"] + jnp.sum(p["w"] ** 2), Dense()),
    "in a loop": (lambda p, x: jax.lax.fori_loop(0, 3, lambda _, x: x @ p["w"], x), Dense()),
    "in a conditional": (
        lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ p["w"], lambda x: x, x),
        Dense(),
    ),
    "after a conditional": (
        lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda x: x[::-1], lambda x: x[:2], x) @ p["w"],
        Dense(),
    ),
    "table and output layer": (
        lambda p, x: p["w"][jnp.int32(x[:, 0])] @ p["w"].T,
        Dense((1,)),
    ),
    "scale": (lambda p, x: x * p["w"][0], None),
    "scale of a residual branch": (
        lambda p, x: jax.nn.standardize(x + jnp.tanh(x) * p["w"][0]) * p["w"][1],
        None,
    ),
    "embedding": (lambda p, x: p["w"][jnp.int32(x[:, 0])], None),
    "pooled embedding": (lambda p, x: p["w"][jnp.int32(x)].sum(1), None),
    "without the input": (lambda p, x: p["w"] @ p["w"] + jnp.sum(x), None),
}


@pytest.mark.parametrize(("function", "found"), USES.values(), ids=USES)
def test_a_weight_is_listed_if_all_its_uses_are_one_map(function, found):
    assert lipschitz.linear_maps(function, W, X).get("w") == found


def lstm(params, x):
    """A cell that joins its kernels into one, as Flax's OptimizedLSTMCell does."""
    return x @ jnp.concatenate([params["a"], params["b"]], axis=1)


def patches(x, stride):
    """The 2×2 patches of images, with the channels last."""
    found = jax.lax.conv_general_dilated_patches(x, (2, 2), (stride, stride), "VALID")
    return jnp.moveaxis(found, 1, -1)


TWO = {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2))}
UNMAPPED = {
    "low-rank change": (lambda p, x: x @ (jnp.ones((4, 4)) + p["a"] @ p["b"].T), TWO, X, "ab"),
    "standardized": (lambda p, x: x @ (p["w"] - p["w"].mean(0)), W, X, "w"),
    "joined": (lstm, TWO, X, "ab"),
    "part": (lambda p, x: x @ p["w"][:, :2], W, X, "w"),
    "mask that is a parameter": (lambda p, x: x @ (p["a"] * p["b"]), TWO, X, "ab"),
    "mask that is an input": (lambda p, x: x @ (p["w"] * x[:1]), W, X, "w"),
    "chosen by the input": (
        lambda p, x: jnp.einsum("bi,bio->bo", x, p["w"][jnp.int32(x[:, 0])]),
        {"w": jnp.ones((3, 4, 4))},
        X,
        "w",
    ),
    "sum of products": (lambda p, x: jnp.sum(x[:, :, None] * p["w"], 1), W, X, "w"),
    "two maps that are not adjoint": (
        lambda p, x: [jnp.einsum(f, x, p["w"]) for f in ("bi,ijk->bjk", "bj,ijk->bik")],
        {"w": jnp.ones((4, 4, 4))},
        X,
        "w",
    ),
    "changed in a loop": (
        lambda p, x: jax.lax.scan(lambda w, x: (w / 2, x @ w), p["w"], x)[1],
        W,
        X,
        "w",
    ),
    "low-rank change of a weight": (
        lambda p, x: x @ (p["w"] + p["a"] @ p["b"].T),
        W | TWO,
        X,
        "wab",
    ),
    "shifted copies": (
        lambda p, x: jnp.concatenate([x[:, :-1], 2 * x[:, :-1], x[:, 1:]], 2) @ p["a"],
        {"a": jnp.ones((12, 4))},
        jnp.ones((2, 5, 4)),
        "a",
    ),
    "circular features": (
        lambda p, x: jnp.pad(x, ((0, 0), (0, 2)), mode="wrap") @ p["w"],
        {"w": jnp.ones((6, 4))},
        X,
        "w",
    ),
    "overlapping patches": (
        lambda p, x: patches(x, 1).reshape(2, -1, 12) @ p["a"],
        {"a": jnp.ones((12, 4))},
        jnp.ones((2, 3, 6, 6)),
        "a",
    ),
    "two sizes": (
        lambda p, x: [jax.lax.conv(x, p["w"], (s, s), "SAME") for s in (1, 2)],
        {"w": jnp.ones((2, 2, 3, 3))},
        jnp.ones((1, 2, 6, 6)),
        "w",
    ),
}


@pytest.mark.parametrize(("function", "params", "x", "names"), UNMAPPED.values(), ids=UNMAPPED)
def test_a_weight_without_single_map_is_named(function, params, x, names):
    with pytest.raises(ValueError, match="no single linear map") as caught:
        lipschitz.linear_maps(function, params, x)
    for name in names:
        assert f" {name} " in str(caught.value)
    assert lipschitz.linear_maps(function, params, x, where=lambda path: path not in names) == {}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(4, (3, 3), padding="REFLECT"),
        nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="CIRCULAR"),
        nn.WeightNorm(nn.Dense(4)),
        nn.RNN(nn.OptimizedLSTMCell(4)),
        nn.ConvLocal(2, (3, 3)),
        nn.ConvLocal(2, (1, 2), strides=(2, 1)),
    ],
    ids=["reflected", "circular transposed", "weight norm", "LSTM", "local", "local, strided"],
)
def test_layers_without_a_single_linear_map_are_named(layer):
    x = example(None)[:, :, 0] if isinstance(layer, nn.RNN) else example(None)
    variables = layer.init(KEY, x)
    kernels = [path for path in named_leaves(variables) if path.endswith("kernel")]
    with pytest.raises(ValueError, match="no single linear map") as caught:
        lipschitz.linear_maps(layer.apply, variables, x)
    assert all(path in str(caught.value) for path in kernels)


def test_low_rank_branches_are_mapped_one_by_one():
    def branches(p, x):
        return x @ p["w"] + 0.5 * (x @ p["a"]) @ p["b"].T

    assert lipschitz.linear_maps(branches, W | TWO, X) == {
        "a": Dense(), "b": Dense((1,)), "w": Dense()
    }  # fmt: skip
    graphdef, params = nnx.split(nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0)))
    maps = lipschitz.linear_maps(lambda p, x: nnx.merge(graphdef, p)(x), params, X)
    assert sorted(path.replace("/value", "") for path in maps) == [
        "kernel", "lora/lora_a", "lora/lora_b"
    ]  # fmt: skip
    assert set(maps.values()) == {Dense()}


def test_patches_without_overlap_have_the_norm_of_the_input():
    """The kernels of the places form a stack, whose largest norm is that of the layer."""
    layer, x = nn.ConvLocal(3, (2, 2), (2, 2)), jax.random.normal(KEY, (1, 4, 6, 2))
    variables = layer.init(KEY, x)
    maps = lipschitz.linear_maps(layer.apply, variables, x)
    assert maps == {"params/kernel": lipschitz.Stacked(Dense(), (0, 1))}
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(variables, x)))(x)
    norm = np.linalg.norm(np.asarray(jacobian).reshape(-1, x.size), 2)
    norms = np.linalg.norm(variables["params"]["kernel"], 2, axis=(2, 3))
    np.testing.assert_allclose(norms.max(), norm, rtol=1e-5)


def test_a_kernel_with_three_axes_and_its_adjoint_have_one_map():
    def there_and_back(params, x):
        y = jnp.tanh(jnp.einsum("bi,ijk->bjk", x, params["w"]))
        return jnp.einsum("bjk,ijk->bi", y, params["w"])

    def back_and_there(params, y):
        return jnp.einsum("bi,ijk->bjk", jnp.einsum("bjk,ijk->bi", y, params["w"]), params["w"])

    params = {"w": jnp.ones((4, 2, 3))}
    assert lipschitz.linear_maps(there_and_back, params, X) == {"w": Dense((0,))}
    maps = lipschitz.linear_maps(back_and_there, params, jnp.ones((5, 2, 3)))
    assert maps == {"w": Dense((1, 2))}


def test_paths_that_collide_are_an_error():
    params = {"a/b": jnp.ones((4, 4)), "a": {"b": jnp.ones((4, 4))}}
    with pytest.raises(ValueError, match=r"'a/b'.*'a_b'"):
        lipschitz.linear_maps(lambda p, x: x @ p["a/b"] @ p["a"]["b"], params, X)
    tx = lipschitz.project_spectral_norm(1.0, where=lambda path: True)
    with pytest.raises(ValueError, match=r"'a/b'.*'a_b'"):
        tx.init(params)


class TestPaddingByAnotherOperation:
    """The zeros in front of a causal convolution are not inputs."""

    @pytest.mark.parametrize(
        ("stride", "taps", "dilation", "length"), [(2, 3, 1, 9), (3, 4, 1, 11), (2, 3, 2, 8)]
    )
    def test_causal(self, stride, taps, dilation, length):
        layer = nn.Conv(2, (taps,), stride, "CAUSAL", kernel_dilation=dilation, use_bias=False)
        x = jax.random.normal(KEY, (1, length, 3))
        self.check(layer.apply, layer.init(KEY, x), x)

    @pytest.mark.slow
    def test_the_interval_of_a_causal_layer_contains_its_norm(self):
        layer = nn.Conv(2, (3,), 2, "CAUSAL", use_bias=False)
        x = jax.random.normal(KEY, (1, 6, 2))
        expected, *layer = self.check(layer.apply, layer.init(KEY, x), x)
        lower, upper = jax.jit(lipschitz.spectral_norm, static_argnums=1)(*layer)
        assert lower <= expected * (1 + 1e-6)
        assert expected * (1 - 1e-6) <= upper <= 1.05 * expected

    def test_zeros_on_several_sides_and_between_entries(self):
        def padded(params, x):
            zero = jnp.zeros((), x.dtype)
            x = jax.lax.pad(x, zero, [(0, 0, 0), (2, 1, 1), (0, 2, 0), (0, 0, 0)])
            x = jnp.concatenate([x, jnp.ones((1, x.shape[1], 1, 2))], 2)
            return jax.lax.conv_general_dilated(
                x, params["w"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        params = {"w": jax.random.normal(KEY, (3, 2, 2, 3))}
        self.check(padded, params, jax.random.normal(KEY, (1, 4, 5, 2)))

    def test_padding_before_a_loop_is_an_input_of_the_loop(self):
        """After the first iteration, the places that were padded hold other values."""

        def scanned(params, x):
            def layer(x, kernel):
                layout = ("NHC", "HIO", "NHC")
                return jax.lax.conv_general_dilated(
                    x, kernel, (1,), "SAME", dimension_numbers=layout
                ), None

            return jax.lax.scan(layer, jnp.pad(x, ((0, 0), (2, 1), (0, 0))), params["w"])[0]

        params = {"w": jnp.ones((2, 3, 2, 2))}
        one = Convolution((7, 2), padding=[(1, 1)])
        maps = lipschitz.linear_maps(scanned, params, jnp.ones((1, 4, 2)))
        assert maps == {"w": lipschitz.Stacked(one)}

    def test_constant_channels(self):
        def with_place(params, x):
            place = jnp.broadcast_to(jnp.linspace(-1, 1, x.shape[1])[:, None], (*x.shape[:2], 1))
            x = jnp.concatenate([place, x], 2)
            return jax.lax.conv_general_dilated(
                x, params["w"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
            )

        params = {"w": jax.random.normal(KEY, (3, 3, 2)).at[:, 0].multiply(9)}
        self.check(with_place, params, jax.random.normal(KEY, (1, 6, 2)))

    def check(self, function, params, x):
        """The map has the norm of the Jacobian of the layer by itself."""
        jacobian = jax.jit(jax.jacobian(lambda x: function(params, x)))(x)
        expected = np.linalg.norm(np.asarray(jacobian, np.float64).reshape(-1, x.size), 2)
        (linear_map,) = lipschitz.linear_maps(function, params, x).values()
        (kernel,) = jax.tree.leaves(params)
        assert exact_norm(linear_map, kernel) == pytest.approx(expected, rel=1e-5)
        return expected, kernel, linear_map
