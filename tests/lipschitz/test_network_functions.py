"""Bounds of functions that have none operation by operation, such as softmax, MaxMin and where.

The references are the largest norm of the Jacobian over many points, in float64, and the constants
that are known exactly.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from flatreg import lipschitz

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = (1, 4, 2)


def points():
    """Random arrays of shape SHAPE; arrays with one large entry, and with two equal ones."""
    rng = np.random.default_rng(0)
    random = [size * rng.normal(size=(200, *SHAPE)) for size in (0.1, 1.0, 5.0)]
    large = 50 * np.eye(8).reshape(8, *SHAPE)
    pairs = [large + np.roll(large, shift, axis=0) for shift in (1, 2)]
    return jnp.asarray(np.concatenate([*random, large, *pairs]))


def upper_of(f, shape=SHAPE):
    x = jax.ShapeDtypeStruct(shape, jnp.float64)
    return float(lipschitz.lipschitz_bound(lambda _, x: f(x), (), x).upper)


def assert_tight(functions):
    """Each bound is the given constant, which no slope exceeds and some slope almost reaches."""
    z = points()

    @jax.jit
    def steepest(z):
        jacobians = [jax.vmap(jax.jacobian(lambda x, f=f: f(x).reshape(-1)))(z) for f in each]
        flat = [j.reshape(len(z), -1, math.prod(SHAPE)) for j in jacobians]
        return [jnp.linalg.norm(j, 2, axis=(1, 2)).max() for j in flat]

    each = [f for f, _ in functions.values()]
    for (name, (f, constant)), slope in zip(functions.items(), steepest(z), strict=True):
        upper = upper_of(f)
        assert upper == pytest.approx(constant, rel=1e-9), name
        assert 0.97 * upper <= slope <= upper, name


def halves(z):
    return jnp.split(z.reshape(1, 8), 2, axis=1)


def exp_over_sum(z):
    return jnp.exp(z) / jnp.exp(z).sum((1, 2), keepdims=True)


def test_softmax_along_any_axes_and_in_any_spelling():
    twice = jax.vmap(jax.vmap(nn.softmax))
    assert_tight(
        {
            "last axis": (nn.softmax, 0.5),
            "middle axis": (lambda z: nn.softmax(z, axis=1), 0.5),
            "several axes": (lambda z: nn.softmax(z, axis=(1, 2)), 0.5),
            "vmap": (lambda z: jax.vmap(nn.softmax, 2, 1)(3 * z), 1.5),
            "vmap of vmap": (lambda z: twice(z.swapaxes(1, 2)), 0.5),
            "shifted logits": (lambda z: nn.softmax(z - z.mean((1, 2), keepdims=True)), 0.5),
            "by hand": (exp_over_sum, 0.5),
            "by reciprocal": (lambda z: jnp.exp(z) * (1 / jnp.exp(z).sum(1, keepdims=True)), 0.5),
            "exp(log_softmax)": (lambda z: jnp.exp(nn.log_softmax(z, axis=1)), 0.5),
        }
    )


@pytest.mark.parametrize(
    "f",
    [
        lambda z: jnp.exp(z) / jnp.exp(z).sum(1)[:, :, None],  # the sums of other groups
        lambda z: jnp.exp(z) / jnp.exp(2 * z).sum(1, keepdims=True),
        lambda z: z - jax.nn.logsumexp(z, axis=1)[:, :, None] ** 2,
        lambda z: jnp.exp(z - jax.nn.logsumexp(z, axis=1)[:, :, None]),
        lambda z: jnp.log(jnp.exp(z - z[:, :, ::-1]).sum(1)) ** 3,
    ],
)
def test_functions_that_only_resemble_softmax_raise(f):
    with pytest.raises(ValueError, match="no bound"):
        upper_of(f, (1, 3, 3))


def test_log_softmax_and_logsumexp_along_any_axes():
    lse = jax.nn.logsumexp
    assert_tight(
        {
            "last axis": (nn.log_softmax, math.sqrt(2)),
            "middle axis": (lambda z: nn.log_softmax(z, axis=1), 2),
            "vmap": (jax.vmap(nn.log_softmax), math.sqrt(2)),
            "vmap along another axis": (jax.vmap(nn.log_softmax, 2), 2),
            "vmap of a network": (jax.vmap(lambda z: nn.log_softmax(2 * z.reshape(8))), 2 * 8**0.5),
            "by hand": (lambda z: z - lse(z, axis=(1, 2), keepdims=True), math.sqrt(8)),
            "log(softmax)": (lambda z: jnp.log(nn.softmax(z)), math.sqrt(2)),
            "logsumexp": (lambda z: lse(z, axis=1), 1),
            "logsumexp of all": (lambda z: lse(z), 1),
            "logsumexp under vmap": (jax.vmap(lambda z: lse(z, axis=0, keepdims=True)), 1),
            "log Σ exp": (lambda z: jnp.log(jnp.exp(z).sum(2)), 1),
        }
    )


def test_where_with_branches_that_agree_is_bounded():
    slopes = np.array([[0.5, -2.0]])
    thresholds = np.linspace(-1, 2, 8).reshape(SHAPE)
    assert_tight(
        {
            "leaky": (lambda z: jnp.where(z > 0, z, 0.2 * z), 1),
            "steep": (lambda z: jnp.where(z < 0, -3 * z, z), 3),
            "slope per channel": (lambda z: jnp.where(z >= 0, z, slopes * z), 2),
            "threshold per entry": (lambda z: jnp.where(z > thresholds, z - thresholds, 0.0), 1),
            "hard tanh": (lambda z: jnp.where(z > 2, 2.0, jnp.where(z < -1, -1.0, z)), 1),
            "absolute value": (lambda z: lax.select(z >= 0, z, -z), 1),
            "mask": (lambda z: 3 * z * (z > 0), 3),
            "soft threshold": (lambda z: jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.5, 0), 1),
            "both conditions": (lambda z: jnp.where((z > -1) & (z < 1), 2 * z, 2 * jnp.sign(z)), 2),
            "Huber": (lambda z: jnp.where(jnp.abs(z) < 1, z**2 / 2, jnp.abs(z) - 0.5), 1),
            "select": (lambda z: jnp.select([z > 1, z < 0], [2 * z - 1, 0 * z], z), 2),
            "ELU by hand": (lambda z: jnp.where(z > 0, z, 0.7 * (jnp.exp(z) - 1)), 1),
            "maximum": (lambda z: jnp.maximum(z, 0.1 * z), 1),
            "clip": (lambda z: jnp.clip(2 * z, -1, 1), 2),
            "z and |z|": (lambda z: 0.6 * z + 0.4 * jnp.abs(z), 1),
            "exp of clip": (lambda z: jnp.exp(jnp.clip(z, -3, 1)), math.e),
            "celu": (lambda z: nn.celu(z, 0.5), 1),
        }
    )


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda z: jnp.where(z > 0, z + 1, z), "At z = 0, .* jumps between 0 and 1"),
        (lambda z: jnp.where(z > 0.5, z, 0.0), "At z = 0.5, .* jumps between 0 and 0.5"),
        (lambda z: jnp.where(z == 1, 5.0, z), "At z = 1, .* jumps between 1 and 5"),
        (lambda z: jnp.where(jnp.abs(z) > 2, z, 0.0), "At z = -2, .* jumps between -2 and 0"),
        (lambda z: jnp.where(z > np.array([0.0, 3.0]), z, 0.0), "At z = 3"),
        (lambda z: jnp.where(jnp.sin(z) > 0, z, -z), "does not compare two affine functions"),
        (lambda z: jnp.where(z.sum() > 0, z, 2 * z), "both branches agree"),
        (lambda z: z * jnp.floor(z), "jumps"),
        (lambda z: jnp.where(z > 0, jnp.sqrt(z), 0.0), "both branches agree"),
    ],
)
def test_where_that_jumps_or_is_unclear_raises(f, reason):
    with pytest.raises(ValueError, match=reason):
        upper_of(f)


def test_entries_that_are_moved_or_repeated():
    assert_tight(
        {
            "stack": (lambda z: jnp.stack([z, 2 * z], axis=1), math.sqrt(5)),
            "stack of parts": (lambda z: jnp.stack(halves(z), axis=2), 1),
            "unstack": (lambda z: jnp.concatenate(jnp.unstack(3 * z, axis=1), axis=-1), 3),
            "tile": (lambda z: jnp.tile(z, (1, 3, 1)), math.sqrt(3)),
            "tile along two axes": (lambda z: jnp.tile(z, (2, 2)), 2),
            "repeat": (lambda z: jnp.repeat(z, 3, axis=1), math.sqrt(3)),
            "roll": (lambda z: jnp.roll(z, 1, axis=1), 1),
            "roll and negate": (lambda z: jnp.concatenate([-z[:, 2:], z[:, :2]], axis=1), 1),
            "twice": (lambda z: jnp.concatenate([z, z[:, :1]], axis=1), math.sqrt(2)),
            "sum of parts": (lambda z: jnp.add(*halves(z)), math.sqrt(2)),
            "one entry set": (lambda z: z.at[:, 0].set(1.0), 1),
            "different activations": (
                lambda z: jnp.concatenate([nn.relu(halves(z)[0]), nn.tanh(halves(z)[1])], 1),
                1,
            ),
            "cumulative sum": (lambda z: jnp.cumsum(z, axis=1), 1 / (2 * math.sin(math.pi / 18))),
        }
    )


def test_sorting_and_maxmin_have_constant_one():
    def maxmin(join, order=jnp.maximum):
        other = jnp.minimum if order is jnp.maximum else jnp.maximum
        return lambda z: join([order(*halves(z)), other(*halves(z))])

    def by_where(z):
        a, b = z[..., 0], z[..., 1]
        return jnp.stack([jnp.where(a > b, a, b), jnp.where(a <= b, a, b)], axis=-1)

    crelu = lambda z: jnp.concatenate([nn.relu(z), nn.relu(-z)], axis=-1)  # noqa: E731
    assert_tight(
        {
            "sort": (lambda z: jnp.sort(z, axis=1), 1),
            "GroupSort": (lambda z: jnp.sort(z.reshape(1, 2, 4), axis=-1).reshape(SHAPE), 1),
            "descending": (lambda z: jnp.sort(z.reshape(-1), descending=True), 1),
            "top k": (lambda z: lax.top_k(z.reshape(1, 8), 3)[0], 1),
            "MaxMin, concatenated": (maxmin(lambda v: jnp.concatenate(v, axis=-1)), 1),
            "MaxMin, stacked": (maxmin(jnp.stack, jnp.minimum), 1),
            "MaxMin, reshaped": (lambda z: jnp.stack([z.max(-1), z.min(-1)], axis=-1), 1),
            "MaxMin, sorted": (lambda z: jnp.sort(2 * z, axis=-1).reshape(1, 8), 2),
            "MaxMin, by where": (by_where, 1),
            "maxout": (lambda z: jnp.maximum(z[:, :2], z[:, 2:]), 1),
            "CReLU": (crelu, 1),
        }
    )


def test_maxmin_and_groupsort_between_orthogonal_layers():
    """A network of orthogonal layers and MaxMin has the constant 1."""
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(np.linalg.qr(rng.normal(size=(8, 8)))[0]) for _ in range(3)]

    def network(kernels, x):
        for kernel in kernels:
            a, b = jnp.split(x @ kernel, 2, axis=-1)
            x = jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)], axis=-1)
            x = jnp.sort(x.reshape(len(x), 2, 4), axis=-1).reshape(len(x), 8)
        return x

    bound = lipschitz.lipschitz_bound(network, kernels, jnp.ones((1, 8)))
    assert bound.upper == pytest.approx(1, rel=1e-12)
    assert set(bound.layers) == {"0", "1", "2"}


class Prelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.PReLU(negative_slope_init=-2.5, param_dtype=float)(x)


@pytest.mark.parametrize("traced", [False, True])
def test_slopes_may_be_parameters_and_traced(traced):
    def bounds(slope):
        networks = [
            lambda a, x: Prelu().apply({"params": {"PReLU_0": {"negative_slope": a}}}, x),
            lambda a, x: jnp.where(x < 0, a * x, x),
            lambda a, x: jnp.maximum(x, a * x),
            lambda a, x: jnp.where(x > 0, x, a * jnp.expm1(x)),
            lambda a, x: nn.elu(x, a),
        ]
        x = jax.ShapeDtypeStruct((1, 3), jnp.float64)
        return [lipschitz.lipschitz_bound(f, slope, x).upper for f in networks]

    found = (jax.jit(bounds) if traced else bounds)(jnp.float64(-2.5))
    np.testing.assert_allclose(found, 2.5, rtol=1e-12)


def test_the_gradient_with_respect_to_a_slope_is_its_sign():
    def upper(slope):
        network = lambda a, x: jnp.where(x > 0, x, a * x)  # noqa: E731
        return lipschitz.lipschitz_bound(network, slope, jnp.ones((1, 3))).upper

    assert jax.grad(upper)(-2.5) == pytest.approx(-1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(4, param_dtype=float)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(name="layers")(x, None)[0]


def nnx_layers():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs):
        return nnx.Linear(4, 4, rngs=rngs, param_dtype=float, use_bias=False)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return nnx.relu(layer(x))

    graphdef, state = nnx.split(create(nnx.Rngs(0)))
    return (lambda state, x: forward(x, nnx.merge(graphdef, state))), state


def test_scans_over_layers_get_the_product_of_norms():
    def by_lax(kernels, x):
        return lax.scan(lambda x, w: (nn.relu(x + x @ w), None), x, kernels, reverse=True)[0]

    x = jnp.ones((1, 4))
    variables = Scanned().init(jax.random.key(0), x)
    kernels = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)))
    cases = {
        "Linen": (Scanned().apply, variables, jax.tree.leaves(variables)[1], 0),
        "NNX": (*nnx_layers(), None, 0),
        "lax": (by_lax, kernels, kernels, 1),
    }
    for name, (apply, params, stacked, shift) in cases.items():
        stacked = jax.tree.leaves(params)[0] if stacked is None else stacked
        expected = math.prod(shift + np.linalg.norm(np.asarray(w), 2) for w in stacked)
        bound = lipschitz.lipschitz_bound(apply, params, x)
        assert bound.upper == pytest.approx(expected, rel=1e-9), name
        assert len(bound.layers) == 3, name


def test_loops_and_conditions_that_are_known_are_followed():
    def recurrent(x):
        step = lambda h, row: (jnp.tanh(h / 2 + row), h)  # noqa: E731
        return lax.scan(step, jnp.zeros((1, 2)), jnp.moveaxis(x, 1, 0))[0]

    three = lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]  # noqa: E731
    assert upper_of(lambda x: lax.fori_loop(0, 4, lambda _, x: jnp.sin(2 * x), x)) == pytest.approx(
        16
    )
    assert upper_of(three) == pytest.approx(8)
    assert upper_of(lambda x: lax.cond(False, lambda x: x, lambda x: -3 * x, x)) == pytest.approx(3)
    assert upper_of(lambda x: lax.switch(5, [jnp.sin, lambda x: 2 * x], x)) == pytest.approx(2)
    # Σ 2⁻ᵏ over the steps, each with an input row of its own
    columns = jax.jacobian(lambda x: recurrent(x).reshape(-1))(jnp.zeros(SHAPE)).reshape(2, 8)
    assert np.linalg.norm(columns, 2) <= upper_of(recurrent) <= 2


def test_equal_layers_share_one_loop_if_traced():
    """Ten layers of two shapes need two loops."""

    def network(kernels, x):
        for kernel in kernels:
            x = nn.relu(nn.relu(x @ kernel) @ kernel.T)
        return x

    kernels = [jnp.asarray(np.random.default_rng(i).normal(size=(5, 3))) for i in range(5)]
    program = jax.make_jaxpr(
        lambda kernels: lipschitz.lipschitz_bound(network, kernels, jnp.ones((1, 5))).upper
    )(kernels)
    lengths = [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]
    assert sorted(lengths) == [5, 5]
    bound = lipschitz.lipschitz_bound(network, kernels, jnp.ones((1, 5)))
    norms = [np.linalg.norm(kernel, 2) for kernel in kernels]
    assert bound.upper == pytest.approx(math.prod(norms) ** 2)
    for i, norm in enumerate(norms):
        assert bound.layers[f"{i}"] == pytest.approx(norm)


def test_a_long_kernel_needs_no_square_matrix_if_traced():
    """A kernel with 4096 inputs and 2 outputs needs much less memory than 4096² numbers."""

    def bound(kernel):
        x = jax.ShapeDtypeStruct((1, 4096), jnp.float64)
        return lipschitz.lipschitz_bound(lambda kernel, x: x @ kernel, kernel, x).upper

    kernel = jax.ShapeDtypeStruct((4096, 2), jnp.float64)
    memory = jax.jit(bound).lower(kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4096 * 2 * 20


def test_norms_of_concrete_layers_compile_nothing(caplog):
    """Further convolutions of other shapes, strides and groups, and the values inside ``jit``."""

    def conv(x, kernel, stride, groups):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    def network(kernels, x):
        for stride, kernel in enumerate(kernels, start=1):
            x = jnp.tanh(conv(x, kernel, stride, x.shape[-1] // kernel.shape[2]))
        return x.sum((1, 2))

    rng = np.random.default_rng(0)
    shapes = [(1, 1, 2, 4), (3, 2, 2, 4), (2, 3, 4, 4)]
    kernels = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    x = jax.ShapeDtypeStruct((1, 7, 6, 2), jnp.float64)
    lipschitz.lipschitz_bound(network, kernels[:1], x)
    with jax.log_compiles():
        bound = lipschitz.lipschitz_bound(network, kernels, x)
    assert "Finished XLA compilation" not in caplog.text
    traced = jax.jit(lambda kernels: lipschitz.lipschitz_bound(network, kernels, x))(kernels)
    assert bound.upper == pytest.approx(float(traced.upper), rel=1e-12)
    assert bound.layers == pytest.approx(jax.tree.map(float, traced.layers), rel=1e-12)
