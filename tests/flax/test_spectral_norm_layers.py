"""Spectral normalization of single layers: their dense matrices have the requested norm."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flatreg.linen import SpectralNorm as LinenSpectralNorm
from flatreg.nnx import SpectralNorm as NNXSpectralNorm


class Case(NamedTuple):
    """A layer in Linen and in NNX, and the shape of an input with a batch axis."""

    linen: Any
    nnx: Any
    shape: tuple[int, ...]


def convolution(shape, *args, kind="Conv", **options):
    return Case(
        lambda dtype: getattr(nn, kind)(*args, **options, param_dtype=dtype),
        lambda dtype, rngs: getattr(nnx, kind)(
            shape[-1], *args, **options, param_dtype=dtype, rngs=rngs
        ),
        shape,
    )


transposed = functools.partial(convolution, kind="ConvTranspose")
CASES = {
    "dense": Case(
        lambda dtype: nn.Dense(4, param_dtype=dtype),
        lambda dtype, rngs: nnx.Linear(6, 4, param_dtype=dtype, rngs=rngs),
        (1, 6),
    ),
    "dense general": Case(
        lambda dtype: nn.DenseGeneral((2, 3), axis=(-2, -1), param_dtype=dtype),
        lambda dtype, rngs: nnx.LinearGeneral(
            (4, 3), (2, 3), axis=(-2, -1), param_dtype=dtype, rngs=rngs
        ),
        (1, 4, 3),
    ),
    "conv": convolution((1, 6, 5, 2), 3, (3, 3)),
    "1-D": convolution((1, 9, 2), 3, (3,), padding="VALID"),
    "strides": convolution((1, 7, 6, 2), 3, (3, 3), strides=2),
    "circular": convolution((1, 6, 5, 2), 3, (3, 3), padding="CIRCULAR"),
    "groups": convolution((1, 6, 6, 4), 4, (3, 3), kernel_dilation=2, feature_group_count=2),
    "transposed": transposed((1, 4, 4, 2), 3, (3, 3), strides=(2, 2)),
    "transpose_kernel": transposed((1, 4, 3, 2), 2, (3, 2), transpose_kernel=True),
}
both = pytest.mark.parametrize("framework", ["linen", "nnx"])


def is_kernel(path):
    return "kernel" in jax.tree_util.keystr(path)


class Layer:
    """A wrapped layer as functions of its parameters and statistics, in either framework.

    Its kernels have a positive mean. One singular value is therefore much larger than the others,
    so that few iterations are enough.
    """

    def __init__(self, framework, case, dtype, bound):
        x = jax.random.normal(jax.random.key(1), case.shape, dtype)
        if framework == "linen":
            layer = case.linen(dtype)
            module = LinenSpectralNorm(layer, bound)
            init = jax.jit(functools.partial(module.init, update_stats=False))
            variables = init(jax.random.key(0), x)
            params, self.stats = variables["params"], variables["batch_stats"]

            def apply(params, stats, x, train):
                variables = {"params": params, "batch_stats": stats}
                return module.apply(variables, x, update_stats=train, mutable=True)

            def plain(params, x):
                return layer.apply({"params": params["layer"]}, x)

        else:
            rngs = nnx.Rngs(0)
            module = NNXSpectralNorm(case.nnx(dtype, rngs), x, bound=bound, rngs=rngs)
            graphdef, params, self.stats = nnx.split(module, nnx.Param, nnx.BatchStat)

            def apply(params, stats, x, train):
                module = nnx.merge(graphdef, *jax.tree.map(lambda x: x, (params, stats)))
                (module.train if train else module.eval)()
                y = module(x)
                _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
                return y, {"params": params, "batch_stats": stats}

            def plain(params, x):
                return nnx.merge(graphdef, params, self.stats).layer(x)

        self.x, self.apply, self.plain = x, apply, plain
        self.params = jax.tree_util.tree_map_with_path(
            lambda path, w: w + 0.3 * is_kernel(path), params
        )
        self.train = jax.jit(lambda stats: apply(self.params, stats, x, True)[1])
        evaluate = jax.jacfwd(lambda x, stats: apply(self.params, stats, x, False), has_aux=True)
        self.evaluate = jax.jit(lambda stats: evaluate(x, stats))

    def stats_after(self, updates):
        stats = self.stats
        for _ in range(updates):
            stats = self.train(stats)["batch_stats"]
        return stats


@functools.cache
def layer_of(framework, name, dtype=jnp.float32):
    return Layer(framework, CASES[name], dtype, bound=0.7)


def norm_of(matrix, x):
    """The spectral norm of a Jacobian, which does not contain the bias."""
    return np.linalg.norm(np.asarray(matrix, np.float64).reshape(-1, x.size), 2)


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@both
@pytest.mark.parametrize("name", CASES)
class TestEveryLayer:
    @pytest.mark.nightly_except("conv-linen", "groups-nnx")
    def test_the_dense_matrix_has_the_requested_norm(self, framework, name):
        layer = layer_of(framework, name)
        matrix, _ = layer.evaluate(layer.stats_after(3))
        assert norm_of(matrix, layer.x) == pytest.approx(0.7, rel=1e-3)

    @pytest.mark.nightly_except("dense-linen", "strides-linen", "1-D-nnx", "transposed-nnx")
    def test_only_training_updates_the_statistics(self, framework, name):
        layer = layer_of(framework, name)
        trained, (_, evaluated) = layer.train(layer.stats), layer.evaluate(layer.stats)
        assert same(trained["params"], layer.params)
        assert same(evaluated["params"], layer.params)
        assert same(evaluated["batch_stats"], layer.stats)
        assert not same(trained["batch_stats"], layer.stats)


@pytest.mark.nightly_except("dense general-nnx")
@both
@pytest.mark.parametrize("name", ["dense general", "strides", "transposed"])
def test_the_gradient_matches_the_dense_formula(framework, name, x64):
    """∇ of a loss of 0.7 W/σ(A_W), with σ by SVD of the dense matrix; also rematerialized."""
    layer = layer_of(framework, name, jnp.float64)
    stats, x = layer.stats_after(5), layer.x

    def loss(y):
        return jnp.mean((jnp.tanh(y) - jnp.linspace(-1, 1, y.size).reshape(y.shape)) ** 2)

    def by_formula(params):
        matrix = jax.jacfwd(lambda x: layer.plain(params, x))(x).reshape(-1, x.size)
        factor = 0.7 / jnp.linalg.svd(matrix, compute_uv=False)[0]
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, w: w * factor if is_kernel(path) else w, params
        )
        return loss(layer.plain(scaled, x))

    @jax.checkpoint
    def normalized(params):
        return loss(layer.apply(params, stats, x, False)[0])

    actual = jax.jit(jax.grad(normalized))(layer.params)
    expected = jax.jit(jax.grad(by_formula))(layer.params)
    for g, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


def test_flax_normalizes_the_reshaped_kernel_instead():
    """With Flax's SpectralNorm, the norm of the convolution is not 1, but above 1.5."""
    ours = layer_of("linen", "conv")
    module = nn.SpectralNorm(CASES["conv"].linen(jnp.float32), n_steps=50)
    init = jax.jit(functools.partial(module.init, update_stats=False))
    stats = init(jax.random.key(0), ours.x)["batch_stats"]
    variables = {"params": {"layer_instance": ours.params["layer"]}, "batch_stats": stats}
    operator = jax.jit(jax.jacfwd(lambda x: module.apply(variables, x, update_stats=False)))
    assert norm_of(operator(ours.x), ours.x) > 1.5


def init_linen(layer, x, **options):
    return LinenSpectralNorm(layer, **options).init(jax.random.key(0), x, update_stats=False)


class TestErrors:
    @pytest.mark.parametrize("layer", [nn.LayerNorm(), nn.Sequential([nn.relu])])
    def test_a_linen_layer_without_kernel(self, layer):
        with pytest.raises(ValueError, match=r"finds no kernel in \w+: wrap each dense layer"):
            init_linen(layer, jnp.ones((1, 4)))

    def test_an_nnx_layer_without_kernel(self):
        with pytest.raises(ValueError, match=r"finds no kernel in LayerNorm: wrap each dense"):
            NNXSpectralNorm(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), jnp.ones((1, 4)), rngs=nnx.Rngs(0))

    def test_a_kernel_without_linear_map_raises(self):
        layer = nn.ConvTranspose(2, (3, 3), padding="CIRCULAR")
        with pytest.raises(ValueError, match="no linear map of the input for kernel in Conv"):
            init_linen(layer, jnp.ones((1, 6, 6, 2)))

    @both
    def test_another_size_of_input(self, framework):
        layer = layer_of(framework, "conv")
        larger = jnp.ones((1, 8, 8, 2))
        with pytest.raises(ValueError, match=r"shape \(6, 5, 2\), but got .*shape \(8, 8, 2\)"):
            layer.apply(layer.params, layer.stats, larger, False)

    def test_a_negative_bound(self):
        with pytest.raises(ValueError, match="bound must be finite and at least 0"):
            init_linen(nn.Dense(2), jnp.ones((1, 4)), bound=-1.0)
        linear = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="bound must be finite and at least 0"):
            NNXSpectralNorm(linear, jnp.ones((1, 4)), bound=-1.0, rngs=nnx.Rngs(0))
