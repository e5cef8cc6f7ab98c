"""Kernels are treated by their role: attention, stacks of layers, masks and ties."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flatreg import lipschitz, measures
from flatreg._core.tree import named_leaves
from tests.support.kernels import exact_norm, first_update

KEY = jax.random.key(0)
MASK = np.random.default_rng(1).integers(0, 2, (3, 4, 1, 5)).astype(float)
ATTENTION = nn.MultiHeadDotProductAttention(2)


def flattened(kernel, inputs=1):
    """The matrix of a dense kernel whose first axes are the inputs."""
    return np.reshape(kernel, (np.prod(kernel.shape[:inputs]), -1))


def causal_matrix(kernel, length=6):
    """The matrix (inputs, outputs) of a causal convolution (taps, in, out), tap by tap."""
    taps, channels, outputs = kernel.shape
    matrix = np.zeros((length, channels, length, outputs))
    for output in range(length):
        for tap in range(taps):
            place = output - (taps - 1) + tap
            if place >= 0:
                matrix[place, :, output] += kernel[tap]
    return matrix.reshape(length * channels, length * outputs)


class Block(nn.Module):
    """A layer of a scanned network: a causal convolution, attention and a dense layer."""

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.Conv(4, (3,), padding="CAUSAL", name="conv")(nn.LayerNorm()(x))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x)
        return nn.tanh(nn.Dense(4, name="dense")(x)), None


class Model(NamedTuple):
    """A model and the matrices of its kernels, computed without the traced maps.

    Attributes:
      function: the model, of parameters and input.
      params: the parameters.
      x: an input.
      matrices: the path of each kernel, and a function of the parameter to a list of matrices.
    """

    function: Callable[..., Any]
    params: Any
    x: jax.Array
    matrices: dict[str, Callable[..., list[Any]]]


def per_layer(matrix, **options):
    return lambda kernel: [matrix(layer, **options) for layer in kernel]


def single(matrix, **options):
    return lambda kernel: [matrix(kernel, **options)]


def linen_scan():
    stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = jax.random.normal(KEY, (2, 6, 4))
    return Model(
        lambda params, x: stack.apply({"params": params}, x, None)[0],
        jax.jit(stack.init)(KEY, x, None)["params"],
        x,
        {
            "attention/key/kernel": per_layer(flattened),
            "attention/out/kernel": per_layer(flattened, inputs=2),
            "attention/query/kernel": per_layer(flattened),
            "attention/value/kernel": per_layer(flattened),
            "conv/kernel": per_layer(causal_matrix),
            "dense/kernel": per_layer(flattened),
        },
    )


def nnx_stack(loop):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    graphdef, params = nnx.split(create(nnx.Rngs(0)))
    run = {
        "scan": nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry),
        "vmap": nnx.vmap(lambda x, layer: layer(x)),
    }[loop]
    x = jax.random.normal(KEY, (2, 4) if loop == "scan" else (3, 2, 4))
    return Model(
        lambda params, x: run(x, nnx.merge(graphdef, params)),
        nnx.to_pure_dict(params),
        x,
        {"kernel": per_layer(flattened)},
    )


def python_loop():
    """A stack whose layers are on the second axis, next to a tied table and a masked kernel."""
    keys = jax.random.split(KEY, 3)
    mask = np.tri(4)
    params = {
        "layers": jax.random.normal(keys[0], (4, 2, 4)),
        "masked": jax.random.normal(keys[1], (4, 4)),
        "table": jax.random.normal(keys[2], (7, 4)),
    }

    def function(params, x):
        x = params["table"][jnp.int32(x)]
        for i in range(2):
            x = jnp.tanh(x @ params["layers"][:, i])
        return (x @ (params["masked"] * mask)) @ params["table"].T

    matrices = {
        "layers": lambda kernel: [kernel[:, 0], kernel[:, 1]],
        "masked": lambda kernel: [kernel * mask],
        "table": single(flattened),
    }
    return Model(function, params, jnp.zeros((2, 3)), matrices)


MODELS = {
    "Linen scan": linen_scan,
    "NNX scan": functools.partial(nnx_stack, "scan"),
    "NNX vmap": functools.partial(nnx_stack, "vmap"),
    "Python loop, tie, mask": python_loop,
}


@functools.cache
def model_of(name):
    """A model with kernels of different norms, and its linear maps."""
    model = MODELS[name]()
    sizes = iter(np.linspace(0.5, 2, 50))
    params = jax.tree.map(lambda w: w * next(sizes), model.params)
    model = model._replace(params=params)
    return model, lipschitz.linear_maps(model.function, model.params, model.x)


def norms(model, params):
    leaves = named_leaves(params)
    return {
        path: [np.linalg.norm(np.float64(m), 2) for m in matrices(np.asarray(leaves[path]))]
        for path, matrices in model.matrices.items()
    }


@pytest.mark.parametrize("name", MODELS)
class TestEveryLayer:
    def test_every_kernel_is_found(self, name):
        model, maps = model_of(name)
        assert list(maps) == list(model.matrices)

    def test_the_projection_bounds_each_layer_by_itself(self, name):
        model, maps = model_of(name)
        before = norms(model, model.params)
        bound = float(np.median(np.concatenate([*before.values()])))
        tx = lipschitz.project_spectral_norm(bound, norm="upper_bound", operators=maps)

        @jax.jit
        def project(params):
            return optax.apply_updates(params, first_update(tx, params)[0])

        projected = project(model.params)
        for path, after in norms(model, projected).items():
            for old, new in zip(before[path], after, strict=True):
                assert new <= bound
                least = min(old, bound) * (0.95 if "conv" in path else 0.9985)
                assert new >= least * (1 - 1e-6)


@pytest.mark.parametrize(
    "name", [m if m == "NNX scan" else pytest.param(m, marks=pytest.mark.nightly) for m in MODELS]
)
def test_penalty_and_normalization_use_the_norm_of_each_layer(name):
    """σ∇σ by the derivative of an SVD, and norms of 0.7 after normalization."""
    model, maps = model_of(name)
    tx = lipschitz.spectral_norm_penalty(1.0, KEY, operators=maps)

    @jax.jit
    def after_many_steps(params):
        zeros = optax.tree.zeros_like(params)

        def step(state, _):
            return tx.update(zeros, state, params)[1], None

        state = jax.lax.scan(step, tx.init(params), length=100)[0]
        normalized, _ = lipschitz.spectral_normalize(params, state, bound=0.7, operators=maps)
        return tx.update(zeros, state, params)[0], normalized

    slopes, normalized = after_many_steps(model.params)
    for path, found in norms(model, normalized).items():
        np.testing.assert_allclose(found, 0.7, rtol=2e-3, err_msg=path)
    leaves, slopes = named_leaves(model.params), named_leaves(slopes)
    for path, expected in norms(model, model.params).items():
        # σ∇σ is homogeneous: ⟨σ∇σ, W⟩ = Σσ² over the layers.
        inner = np.sum(np.float64(slopes[path]) * np.float64(leaves[path]))
        np.testing.assert_allclose(inner, np.sum(np.square(expected)), rtol=5e-3)
    unlisted = slopes.keys() - maps.keys()
    assert not any(np.any(slopes[path]) for path in unlisted)


def test_the_norm_of_a_stack_is_the_largest_norm_of_its_layers():
    kernel = np.random.default_rng(0).normal(size=(3, 4, 2, 5)) * MASK
    kernel[:, :, 1] *= 3
    layers = kernel.transpose(2, 0, 1, 3).reshape(2, 3, -1)
    expected = max(np.linalg.norm(layer, 2) for layer in layers)
    linear_map = lipschitz.Masked(lipschitz.Stacked(lipschitz.Dense((0,)), (2,)), MASK)
    lower, upper = jax.jit(lambda kernel: lipschitz.spectral_norm(kernel, linear_map))(kernel)
    np.testing.assert_allclose(lower, expected, rtol=1e-5)
    assert expected * (1 - 1e-6) <= upper <= 1.001 * expected


def test_a_mask_has_the_axes_of_the_stored_kernel():
    """A kernel with three axes in another order, times a mask."""
    mask = np.random.default_rng(0).integers(0, 2, (3, 4, 2)).astype(float)
    params = {"w": jax.random.normal(KEY, (2, 3, 4))}

    def function(params, x):
        return jnp.einsum("bi,iok->bok", x, jnp.transpose(params["w"], (1, 2, 0)) * mask)

    x = jnp.ones((1, 3))
    linear_map = lipschitz.linear_maps(function, params, x)["w"]
    matrix = jax.jacobian(lambda x: function(params, x))(x).reshape(8, 3)
    expected = np.linalg.norm(np.float64(matrix), 2)
    np.testing.assert_allclose(exact_norm(linear_map, params["w"]), expected, rtol=1e-6)


def test_the_penalty_has_the_slope_of_each_layer():
    """σ∇σ = σuvᵀ of every layer, with u and v from NumPy's SVD."""
    model, maps = model_of("NNX scan")
    tx = lipschitz.spectral_norm_penalty(1.0, KEY, operators=maps)
    gap = jnp.einsum("lij,j->lij", model.params["kernel"], jnp.array([3.0, 1, 1, 1]))
    slopes = jax.jit(lambda params: first_update(tx, params)[0])({"kernel": gap})["kernel"]
    for kernel, slope in zip(gap, slopes, strict=True):
        u, s, v = np.linalg.svd(kernel)
        np.testing.assert_allclose(slope, s[0] * np.outer(u[:, 0], v[0]), atol=2e-3)


def test_the_orthogonality_penalty_is_zero_for_orthogonal_layers():
    """Stacked identities and rotations; and a grouped convolution with orthogonal groups."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    stack = jnp.asarray(np.stack([np.eye(4), rotation, -np.eye(4)]), jnp.float32)
    heads = jnp.asarray(rotation.reshape(4, 2, 2), jnp.float32)
    groups = jnp.asarray(np.concatenate([rotation[:, :2]] * 2, 1), jnp.float32).reshape(2, 2, 4)
    params = {"stack": stack, "heads": heads, "groups": groups}
    operators = {
        "stack": lipschitz.Stacked(lipschitz.Dense()),
        "heads": lipschitz.Dense((0,)),
        "groups": lipschitz.Convolution((5, 4), feature_group_count=2),
    }
    tx = lipschitz.orthogonality_penalty(1.0, operators=operators)
    slopes = jax.jit(lambda params: first_update(tx, params)[0])
    for slope in slopes(params).values():
        np.testing.assert_allclose(slope, 0, atol=1e-5)
    doubled = slopes({**params, "stack": 2 * stack})["stack"]
    np.testing.assert_allclose(doubled, 12 * stack, atol=1e-4)  # 2λσ(σ² − 1) = 12 at σ = 2


UNCLEAR = {
    "attention": ("query/kernel", (4, 2, 3)),
    "stack": ("layers/kernel", (3, 4, 4)),
    "stacked attention": ("layers/query/kernel", (2, 4, 2, 3)),
    "grouped": ("conv/kernel", (3, 3, 1, 4)),
    "convolution in 1-D": ("conv/kernel", (3, 2, 4)),
    "experts": ("moe/up/kernel", (2, 3, 4, 5, 6)),
    "vector": ("head/kernel", (4,)),
}
FUNCTIONS = {
    "project_spectral_norm": lambda p, **k: lipschitz.project_spectral_norm(1.0, **k).init(p),
    "project_norm": lambda p, **k: lipschitz.project_norm(1, 1.0, **k).init(p),
    "spectral_norm_penalty": lambda p, **k: lipschitz.spectral_norm_penalty(1.0, KEY, **k).init(p),
    "orthogonality_penalty": lambda p, **k: lipschitz.orthogonality_penalty(1.0, **k).init(p),
    "spectral_normalize": lambda p, **k: lipschitz.spectral_normalization_state(p, KEY, **k),
}


@pytest.mark.parametrize("function", FUNCTIONS)
class TestWithoutOperators:
    def test_a_kernel_of_unclear_role_is_named(self, function):
        for path, shape in UNCLEAR.values():
            *parents, leaf = path.split("/")
            params = {leaf: jnp.ones(shape)}
            for parent in reversed(parents):
                params = {parent: params}
            params["dense"] = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
            with pytest.raises(ValueError, match=r"operators=flatreg\.lipschitz\.linear_maps") as e:
                FUNCTIONS[function](params)
            assert f"{function}: {path} has shape {shape}" in str(e.value)
            assert "dense/kernel" not in str(e.value)

    def test_dense_kernels_and_chosen_tables_are_treated(self, function):
        params = {"a": {"kernel": jnp.ones((3, 2))}, "embedding": jnp.ones((5, 2))}
        FUNCTIONS[function](params)
        FUNCTIONS[function](params, where=lambda path: True)

    def test_an_empty_dictionary_of_operators_is_explained(self, function):
        params = {"scan": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4))}}
        for tree in (params, {"a": {"kernel": jnp.ones((3, 2))}}):
            with pytest.raises(ValueError, match=r"operators is empty\. linear_maps.*did not find"):
                FUNCTIONS[function](tree, operators={})

    def test_a_stack_of_biases_is_not_a_kernel(self, function):
        params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((3, 2)), "scale": jnp.ones((3, 2))}
        with pytest.raises(ValueError, match=r"bias has shape \(3, 2\), scale has shape"):
            FUNCTIONS[function](params, where=lambda path: True)


class TestFilters:
    def attention(self, name):
        if name == "single":
            x = jnp.ones((2, 6, 4))
            return lambda p, x: ATTENTION.apply({"params": p}, x), ATTENTION.init(KEY, x)["params"]
        return model_of("Linen scan")[0].function, model_of("Linen scan")[0].params

    @pytest.mark.nightly_except("single-True")
    @pytest.mark.parametrize(("name", "traced"), [("single", True), ("scanned", False)])
    def test_attention_and_stacks(self, name, traced):
        """Biases and scales stay, and each output of each layer and head has its own norm."""
        function, params = self.attention(name)
        params = jax.tree.map(lambda w: w + 0.1, params)
        maps = None
        if traced:
            maps = lipschitz.linear_maps(function, params, jnp.ones((2, 6, 4)))
        direction = measures.filter_normalized(params, KEY, operators=maps)
        first = 1 if name == "scanned" else 0
        moved = 0
        for path, d in named_leaves(direction).items():
            w = named_leaves(params)[path]
            if path.endswith("kernel"):
                last = {"query": 2, "key": 2, "value": 2}.get(path.split("/")[-2], 1)
                axes = tuple(range(first, w.ndim - last))
                lengths = [np.sqrt(np.sum(np.square(np.float64(x)), axes)) for x in (d, w)]
                np.testing.assert_allclose(*lengths, rtol=1e-5)
                moved += 1
            else:
                assert not d.any(), path
        assert moved == 4 + 2 * first

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"kernel": jnp.ones((3, 4, 4))}, r"kernel has shape \(3, 4, 4\)"),
            ({"kernel": jnp.ones((4, 4, 4)), "bias": jnp.ones((4, 4))}, r"\(4, 4, 4\)"),
            ({"kernel": jnp.ones((3, 2, 5)), "bias": jnp.ones((2,))}, r"\(3, 2, 5\)"),
        ],
    )
    def test_an_unclear_filter_is_an_error(self, params, message):
        with pytest.raises(ValueError, match=message + ".*operators=flatreg.lipschitz"):
            measures.filter_normalized(params, KEY)

    @pytest.mark.parametrize("operators", [{}, {"other": lipschitz.Dense()}])
    def test_operators_must_belong_to_the_parameters(self, operators):
        with pytest.raises(ValueError, match=r"operators .*linear_maps"):
            measures.filter_normalized({"kernel": jnp.ones((2, 2))}, KEY, operators=operators)
