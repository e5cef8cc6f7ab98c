"""Lipschitz bounds of networks against dense Jacobians and difference quotients in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from lipschitz_networks import MODELS, trained_network, upper_bound

from flatreg import lipschitz

pytestmark = pytest.mark.usefixtures("x64")
every_network = pytest.mark.parametrize("name", MODELS)


def bound_of(f, *shape):
    """The bound of a function of one batch, without parameters."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float64)
    return jax.jit(lambda: lipschitz.lipschitz_bound(lambda _, x: f(x), (), x))()


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def pool(window, strides, padding="VALID", max=True):
    pooling = nn.max_pool if max else nn.avg_pool
    return lambda x: pooling(x, window, strides=strides, padding=padding)


def convolve(kernel, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lambda x: lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


# Linear functions of (1, 6, 6, 4), and how far above the norm the bound may be.
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
    "masked": (lambda x: jnp.where(np.eye(6)[..., None] > 0, x, 1.0), 1),
    "residual": (lambda x: x + x @ normal(4, 4), 2),
    "difference": (lambda x: x - 2 * x, 3),
    "not at all": (lambda x: jnp.ones((1, 3)), 1),
}


@pytest.mark.parametrize(("f", "ratio"), LINEAR.values(), ids=LINEAR)
def test_of_a_linear_function_the_bound_is_at_least_its_norm_and_near_it(f, ratio):
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
    z = jnp.sinh(jnp.linspace(-6.0, 6.0, 200_003))  # to ±200, densest at the kinks
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
    # A tie of two far above the rest, one far above the rest, and anything.
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
def test_max_pooling_is_bounded_by_the_windows_that_share_an_entry(window, strides, shared):
    f = pool(window, strides)
    assert bound_of(f, 16, 16, 1).upper == pytest.approx(math.sqrt(shared))
    # Zero, and one entry that is 1: the quotient is √(windows that hold it).
    spikes = jnp.eye(256).reshape(256, 16, 16, 1)
    assert jnp.sqrt(jnp.sum(f(spikes) ** 2, axis=(1, 2, 3))).max() == pytest.approx(
        math.sqrt(shared)
    )


def quotients(network, pairs):
    """‖f(x) − f(y)‖ / ‖x − y‖ of every pair."""
    a, b = pairs
    length = functools.partial(jnp.linalg.norm, axis=1)
    apart = length((a - b).reshape(len(a), -1))
    return jax.jit(lambda a, b: length(network(a) - network(b)))(a, b) / apart


def dense_jacobian(network, x):
    return np.asarray(jax.jit(jax.jacobian(lambda x: network(x[None])[0]))(x).reshape(10, -1))


def random_pairs(x, count=10_000):
    """Points of the data with noise, and others at distances from 1e-4 to 10."""
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
    search = jax.jit(lambda x: lipschitz.lipschitz_lower_bound(network, x, key, steps=40))
    return search(network.x[:8])


@every_network
def test_no_difference_quotient_of_a_trained_network_is_above_the_bound(name, record_property):
    network, upper = trained_network(name), upper_bound(name).upper
    at_random = float(quotients(network, random_pairs(network.x)).max())
    lower, point = lower_bound(name)
    steepest = np.linalg.svd(dense_jacobian(network, point))[2][0].reshape(point.shape)
    near = float(quotients(network, (point[None], point[None] + 1e-7 * steepest))[0])
    record_property("upper over lower", float(upper / lower))
    assert near == pytest.approx(float(lower), rel=1e-4)  # a quotient attains it in the limit
    assert at_random <= lower <= upper
    assert near <= upper


@pytest.mark.parametrize("name", ["mlp", "nnx"])
def test_no_difference_of_two_outputs_is_steeper_than_their_pair_s_bound(name):
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


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_lower_bound_is_above_the_steepest_example(name):
    network = trained_network(name)
    measure = jax.jit(lambda x: lipschitz.input_sensitivity(network, x))
    at_data = measure(network.x[:8]).max_spectral
    lower, point = lower_bound(name)
    assert lower > 1.02 * at_data
    np.testing.assert_allclose(lower, np.linalg.norm(dense_jacobian(network, point), 2))


def test_ascent_finds_the_steepest_point_of_a_smooth_function():
    weights = normal(5, 3)
    f = lambda x: jnp.tanh(x @ weights)  # noqa: E731 steepest at 0, where J = Wᵀ
    x = jnp.asarray(normal(4, 5))
    search = jax.jit(lambda x: lipschitz.lipschitz_lower_bound(f, x, jax.random.key(0), steps=200))
    found = search(x)
    norm = np.linalg.norm(weights, 2)
    assert 0.98 * norm < found.lower <= norm


def test_the_lower_bound_tells_bad_input():
    with pytest.raises(ValueError, match="steps must be"):
        lipschitz.lipschitz_lower_bound(jnp.sum, jnp.ones((2, 3)), jax.random.key(0), steps=-1)
    with pytest.raises(ValueError, match=r"\(1,\) or \(1, outputs\)"):
        lipschitz.lipschitz_lower_bound(jnp.sin, jnp.ones((2, 3, 4)), jax.random.key(0))


class TestProgram:
    def test_of_a_feed_forward_network_it_is_the_product_of_the_layers(self):
        network, (upper, _, layers) = trained_network("mlp"), upper_bound("mlp")
        assert set(layers) == {"Mlp/Dense_0", "Mlp/Dense_1", "Mlp/Dense_2"}
        for layer, factor in layers.items():
            kernel = network.params["params"][layer.removeprefix("Mlp/")]["kernel"]
            assert factor == pytest.approx(np.linalg.norm(kernel, 2))
        assert upper == pytest.approx(math.prod(layers.values()))

    def test_layers_of_nnx_are_named_by_their_parameters(self):
        layers = upper_bound("nnx").layers
        assert {"inward", "norm mul", "norm gelu", "inner/0", "inner/1", "outward"} == set(layers)

    def test_residual_sums_add(self):
        w, v = normal(4, 4), normal(4, 4)
        upper = bound_of(lambda x: x + nn.relu(x @ w) @ v, 4).upper
        assert upper == pytest.approx(1 + np.linalg.norm(w, 2) * np.linalg.norm(v, 2))

    def test_its_gradient_is_that_of_the_product_of_norms(self):
        params = {"in": jnp.asarray(normal(6, 5)), "out": jnp.asarray(normal(5, 4))}
        network = lambda w, x: nn.gelu(x @ w["in"]) @ w["out"]  # noqa: E731

        def product(w):
            return 1.1289931 * jnp.linalg.norm(w["in"], 2) * jnp.linalg.norm(w["out"], 2)

        upper = jax.jit(lambda w: lipschitz.lipschitz_bound(network, w, jnp.ones((3, 6))).upper)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9),
            jax.value_and_grad(upper)(params),
            jax.value_and_grad(product)(params),
        )

    def test_bfloat16_parameters_are_measured_in_float32(self):
        kernel = jnp.asarray(normal(6, 5), jnp.bfloat16)
        x = jnp.ones((1, 6), jnp.bfloat16)
        upper = lipschitz.lipschitz_bound(lambda w, x: nn.relu(x @ w), kernel, x).upper
        assert upper == pytest.approx(np.linalg.norm(np.asarray(kernel, np.float64), 2), rel=1e-6)

    def test_zero_weights_give_zero(self):
        bound = lipschitz.lipschitz_bound(lambda w, x: x @ w, jnp.zeros((6, 3)), jnp.ones((1, 6)))
        assert bound.upper == 0
        assert not bound.pairs.any()

    def test_remat_and_jit_change_nothing(self):
        w = normal(4, 4)
        inner = jax.checkpoint(jax.jit(lambda x: nn.silu(x @ w)))
        assert bound_of(inner, 4).upper == bound_of(lambda x: nn.silu(x @ w), 4).upper


@jax.jit
def gelu(x):
    """By its name only."""
    return x**3


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, name="attention")(nn.Dense(4)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.inward = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.inward(x))


class Normed(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.norm(nn.Dense(4)(x))


class TestErrors:
    @pytest.mark.parametrize(
        ("model", "operation", "layer"),
        [
            (Attention(), "dot_general", "Attention/attention/"),
            (Normed(nn.LayerNorm()), "square", "Normed/norm'"),
            (Normed(nn.GroupNorm(2)), "square", "Normed/norm'"),
            (Normed(nn.RNN(nn.GRUCell(3, param_dtype=float))), "scan", "Normed/norm"),
        ],
        ids=str,
    )
    def test_layers_without_a_bound_are_named_in_linen(self, model, operation, layer):
        x = jnp.ones((1, 3, 4))
        variables = model.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=rf"no bound for `{operation}`.* in '{layer}"):
            lipschitz.lipschitz_bound(model.apply, variables, x)

    def test_layers_without_a_bound_are_named_in_nnx(self):
        graphdef, state = nnx.split(NnxNorm(nnx.Rngs(0)))
        match = "`square` .*after 'inward/bias', before 'norm/scale'"
        with pytest.raises(ValueError, match=match):
            lipschitz.lipschitz_bound(
                lambda state, x: nnx.merge(graphdef, state)(x), state, jnp.ones((1, 4))
            )

    def test_batch_norm_in_training_mode_has_no_bound(self):
        model = nn.BatchNorm(use_running_average=False)
        x = jnp.ones((2, 4))
        variables = model.init(jax.random.key(0), x)
        apply = lambda v, x: model.apply(v, x, mutable="batch_stats")[0]  # noqa: E731
        with pytest.raises(ValueError, match=r"`square`|`mul`"):
            lipschitz.lipschitz_bound(apply, variables, x)

    @pytest.mark.parametrize(
        ("f", "operation"),
        [
            (lambda x: x * x, "square|mul"),
            (lambda x: 1 / x, "div"),
            (jnp.exp, "exp"),
            (jnp.sqrt, "sqrt"),
            (jnp.floor, "floor"),
            (lambda x: jnp.where(x > 0, x, 1 + x), "gt"),
            (lambda x: x.astype(int).astype(float), "convert_element_type"),
            (lambda x: jnp.sort(x), "sort"),
            (lambda x: x @ x.T, "dot_general"),
            (lambda x: lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x), "scan|while"),
            (lambda x: lax.cond(True, lambda x: x, lambda x: -x, x), "cond"),
            (lambda x: lax.rsqrt(x) * x, "rsqrt"),
            (gelu, "integer_pow"),
        ],
    )
    def test_operations_without_a_bound_are_named(self, f, operation):
        with pytest.raises(ValueError, match=f"no bound for `({operation})`.*right after x"):
            bound_of(f, 3)

    def test_other_input_and_output_is_told(self):
        with pytest.raises(TypeError, match="one array"):
            bound_of(lambda x: (x, x), 3)
        with pytest.raises(TypeError, match="floating-point inputs"):
            lipschitz.lipschitz_bound(lambda w, x: x, (), jnp.arange(3))
