"""Lipschitz bounds of layers, activations and their compositions, in float64.

The references come from algebra and from dense Jacobians.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flatreg import lipschitz
from tests.support.kernels import assert_trees_close
from tests.support.networks.lipschitz_networks import bound_of, trained_network, upper_bound

pytestmark = pytest.mark.usefixtures("x64")


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def divisors(*shape):
    """Numbers from 0.1 to 10, which vary along every axis."""
    return 10 ** np.random.default_rng(1).uniform(-1, 1, size=shape)


def pool(window, strides, padding="VALID", max=True):
    pooling = nn.max_pool if max else nn.avg_pool
    return lambda x: pooling(x, window, strides=strides, padding=padding)


def convolve(kernel, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lambda x: lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


# Linear functions of an array of shape (1, 6, 6, 4), and the largest bound / norm allowed.
LINEAR = {
    "dense": (lambda x: x @ normal(4, 5), 1),
    "kernel on the left": (lambda x: jnp.einsum("oc,bhwc->bhwo", normal(3, 4), x), 1),
    "kernel shared by an axis": (lambda x: jnp.einsum("bhwc,hco->bhwo", x, normal(6, 4, 3)), 1),
    "two axes contracted": (lambda x: jnp.tensordot(x, normal(6, 4, 3), ((2, 3), (0, 1))), 1),
    "convolution": (convolve(normal(3, 3, 4, 2)), 1.3),
    "strided, dilated, grouped convolution": (
        convolve(
            normal(3, 3, 2, 4), window_strides=(2, 1), rhs_dilation=(1, 2), feature_group_count=2
        ),
        2,
    ),
    "transposed convolution": (
        convolve(normal(3, 3, 4, 2), lhs_dilation=(2, 2), padding=((2, 1),) * 2),
        2,
    ),
    "channels first": (
        lambda x: lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2), normal(5, 4, 3, 3), (1, 1), "VALID"
        ),
        1.3,
    ),
    "scaled convolution": (
        lambda x: (convolve(normal(3, 3, 4, 2))(x) - 1) * np.array([100.0, 0.01]) / 3 + 2,
        1.3,
    ),
    "scaled dense": (lambda x: (x @ normal(4, 3) + 1) * np.array([10.0, 1.0, 0.1]), 1),
    "dense, divided per place and channel": (lambda x: (x @ normal(4, 3)) / divisors(6, 3), 20),
    "convolution, divided per row and channel": (
        lambda x: (convolve(normal(3, 3, 4, 2))(x) + 1) / divisors(6, 1, 2),
        20,
    ),
    "dense, multiplied per place and channel": (lambda x: x @ normal(4, 3) * divisors(6, 3), 20),
    "dense, divided and multiplied": (
        lambda x: (x @ normal(4, 3)) / np.array([1.0, 0.1, 10.0]) * np.array([1.0, 0.1, 10.0]),
        1,
    ),
    "circular convolution": (
        lambda x: nn.Conv(2, (3, 3), padding="CIRCULAR").apply(
            {"params": {"kernel": normal(3, 3, 4, 2), "bias": np.ones(2)}}, x
        ),
        4,
    ),
    "scale and shift": (lambda x: normal(4) * x - 3, 1),
    "division": (lambda x: x / np.array([1.0, -0.25, 2.0, 3.0]), 1),
    "average pooling": (pool((2, 2), (2, 2), max=False), 1),
    "overlapping average pooling": (pool((3, 2), (2, 1), "SAME", max=False), 1),
    "mean": (lambda x: x.mean(axis=(1, 2)), 1),
    "sum of all": (lambda x: x.sum(axis=(1, 2, 3)), 1),
    "broadcast": (lambda x: jnp.broadcast_to(x[:, None], (1, 3, 6, 6, 4)), 1),
    "broadcast sum": (lambda x: x[:, :1] + np.ones((1, 6, 6, 4)), 1),
    "moved": (
        lambda x: jnp.flip(jnp.pad(x.transpose(0, 3, 1, 2), ((0, 0),) * 3 + ((1, 2),)), 1),
        1,
    ),
    "concatenated": (lambda x: jnp.concatenate([x, 2 * x, np.ones((1, 6, 6, 1))], axis=-1), 1),
    "parts": (lambda x: jnp.split(x, 2, axis=-1)[1][:, 1:, ::2], 1),
    "gathered": (lambda x: x[:, np.array([0, 2, 2, 5])][..., ::2], 1),
    "masked": (lambda x: jnp.where(np.eye(6)[..., None] > 0, x, 1.0), 1),
    "residual": (lambda x: x + x @ normal(4, 4), 2),
    "difference": (lambda x: x - 2 * x, 3),
    "constant": (lambda x: jnp.ones((1, 3)), 1),
}


@pytest.mark.parametrize(("f", "ratio"), LINEAR.values(), ids=LINEAR)
def test_linear_functions_are_bounded_close_to_their_norm(f, ratio):
    """norm ≤ bound ≤ ratio · norm."""
    x = jnp.asarray(normal(1, 6, 6, 4))
    columns = jax.jit(jax.jacobian(lambda x: f(x).reshape(-1)))(x)
    norm = np.linalg.norm(columns.reshape(len(columns), -1), 2)
    upper = bound_of(f, 6, 6, 4).upper
    assert norm * (1 - 1e-9) <= upper <= norm * ratio * (1 + 1e-9)


ACTIVATIONS = {
    "relu": (nn.relu, 1),
    "relu6": (nn.relu6, 1),
    "tanh": (nn.tanh, 1),
    "abs": (jnp.abs, 1),
    "sigmoid": (nn.sigmoid, 0.25),
    "erf": (jax.scipy.special.erf, 2 / math.sqrt(math.pi)),
    "gelu": (nn.gelu, 1.129),
    "exact gelu": (functools.partial(nn.gelu, approximate=False), 1.129),
    "silu": (nn.silu, 1.0998),
    "silu by hand": (lambda x: x * nn.sigmoid(x), 1.0998),
    "mish": (jax.nn.mish, 1.0885),
    "elu": (nn.elu, 1),
    "steep elu": (lambda x: nn.elu(x, 1.5), 1.5),
    "celu": (lambda x: nn.celu(x, 2.0), 1),
    "selu": (nn.selu, 1.7581),
    "softplus": (nn.softplus, 1),
    "log_sigmoid": (nn.log_sigmoid, 1),
    "leaky_relu": (nn.leaky_relu, 1),
    "steep leaky_relu": (lambda x: nn.leaky_relu(x, -3.0), 3),
    "hard_tanh": (nn.hard_tanh, 1),
    "hard_silu": (jax.nn.hard_silu, 1.5),
    "hard_sigmoid": (jax.nn.hard_sigmoid, 1 / 6),
    "soft_sign": (nn.soft_sign, 1),
    "squareplus": (jax.nn.squareplus, 1),
}


@pytest.mark.parametrize(("f", "constant"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_bounded_by_its_steepest_slope(f, constant):
    z = jnp.sinh(jnp.linspace(-6.0, 6.0, 200_003))  # up to ±200, densest near 0
    steepest = jax.jit(lambda z: jnp.abs(jax.jvp(f, (z,), (jnp.ones_like(z),))[1]).max())(z)
    upper = bound_of(f, 3).upper
    assert upper == pytest.approx(constant, rel=1e-4)
    assert steepest <= upper <= steepest * (1 + 1e-3)


@pytest.mark.parametrize(
    ("f", "constant"),
    [
        (nn.softmax, 0.5),
        (nn.log_softmax, math.sqrt(5)),
        (functools.partial(jax.nn.logsumexp, axis=-1), 1),
        (functools.partial(jax.nn.logsumexp, axis=-1, keepdims=True), 1),
    ],
)
def test_softmax_is_bounded_where_it_is_steepest(f, constant):
    # Two equal logits far above the rest, one far above the rest, and random logits.
    extreme = np.array([[50.0, 50, 0, 0, 0], [50.0, 0, 0, 0, 0]])
    points = np.concatenate([extreme, *(size * normal(50, 5) for size in (0.1, 1, 10))])
    jacobians = jax.jit(jax.vmap(jax.jacobian(f)))(points).reshape(len(points), -1, 5)
    steepest = np.linalg.norm(jacobians, 2, axis=(1, 2)).max()
    assert bound_of(f, 5).upper == pytest.approx(constant)
    assert steepest == pytest.approx(constant)


@pytest.mark.parametrize(
    ("window", "strides", "shared"),
    [((2, 2), (2, 2), 1), ((3, 3), (2, 2), 4), ((3, 2), (1, 2), 3), ((5, 3), (2, 3), 3)],
)
def test_max_pooling_is_bounded_by_the_overlap_of_windows(window, strides, shared):
    f = pool(window, strides)
    assert bound_of(f, 16, 16, 1).upper == pytest.approx(math.sqrt(shared))
    # Between zero and a single entry 1, the quotient is √(number of windows with that entry).
    spikes = jnp.eye(256).reshape(256, 16, 16, 1)
    assert jnp.sqrt(jnp.sum(f(spikes) ** 2, axis=(1, 2, 3))).max() == pytest.approx(
        math.sqrt(shared)
    )


class TestNetworks:
    def test_a_feed_forward_network_gets_the_product_of_norms(self):
        network, (upper, _, layers) = trained_network("mlp"), upper_bound("mlp")
        assert set(layers) == {"Mlp/Dense_0", "Mlp/Dense_1", "Mlp/Dense_2"}
        for layer, factor in layers.items():
            kernel = network.params["params"][layer.removeprefix("Mlp/")]["kernel"]
            assert factor == pytest.approx(np.linalg.norm(kernel, 2))
        assert upper == pytest.approx(math.prod(layers.values()))

    @pytest.mark.slow
    def test_layers_of_nnx_are_named_by_their_parameters(self):
        layers = upper_bound("nnx").layers
        assert {"inward", "norm mul", "norm gelu", "inner/0", "inner/1", "outward"} == set(layers)

    def test_residual_sums_add(self):
        w, v = normal(4, 4), normal(4, 4)
        upper = bound_of(lambda x: x + nn.relu(x @ w) @ v, 4).upper
        assert upper == pytest.approx(1 + np.linalg.norm(w, 2) * np.linalg.norm(v, 2))

    def test_its_gradient_is_the_gradient_of_the_product(self):
        params = {"in": jnp.asarray(normal(6, 5)), "out": jnp.asarray(normal(5, 4))}
        network = lambda w, x: nn.gelu(x @ w["in"]) @ w["out"]  # noqa: E731

        def product(w):
            return 1.1289931 * jnp.linalg.norm(w["in"], 2) * jnp.linalg.norm(w["out"], 2)

        upper = jax.jit(lambda w: lipschitz.lipschitz_bound(network, w, jnp.ones((3, 6))).upper)
        assert_trees_close(
            jax.value_and_grad(upper)(params), jax.value_and_grad(product)(params), rtol=1e-9
        )

    def test_the_gradient_of_pairs_is_that_of_distances(self):
        """Also although the distance of each output to itself is zero."""
        kernel = jnp.asarray(normal(6, 3))

        def pair(w):
            return lipschitz.lipschitz_bound(lambda w, x: x @ w, w, jnp.ones((1, 6))).pairs[0, 1]

        expected = jax.grad(lambda w: jnp.linalg.norm(w[:, 0] - w[:, 1]))(kernel)
        np.testing.assert_allclose(jax.jit(jax.grad(pair))(kernel), expected, rtol=1e-9, atol=1e-12)

    def test_bfloat16_parameters_are_measured_in_float32(self):
        kernel = jnp.asarray(normal(6, 5), jnp.bfloat16)
        x = jnp.ones((1, 6), jnp.bfloat16)
        upper = lipschitz.lipschitz_bound(lambda w, x: nn.relu(x @ w), kernel, x).upper
        assert upper == pytest.approx(np.linalg.norm(np.asarray(kernel, np.float64), 2), rel=1e-6)

    def test_zero_weights_give_zero(self):
        bound = lipschitz.lipschitz_bound(lambda w, x: x @ w, jnp.zeros((6, 3)), jnp.ones((1, 6)))
        assert bound.upper == 0
        assert not bound.pairs.any()

    def test_remat_and_jit_do_not_change_the_bound(self):
        w = normal(4, 4)
        inner = jax.checkpoint(jax.jit(lambda x: nn.silu(x @ w)))
        assert bound_of(inner, 4).upper == bound_of(lambda x: nn.silu(x @ w), 4).upper
