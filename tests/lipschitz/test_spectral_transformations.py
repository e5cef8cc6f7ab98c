"""Properties of all transformations of kernels: dtypes, sharding, checkpoints, cost, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from flatreg import checkpoint, lipschitz, measures
from flatreg.lipschitz import Convolution, Dense
from flatreg.nnx import make_train_step
from tests.support.kernels import first_update

KEY = jax.random.key(0)
PARAMS = {
    "dense": {"kernel": jax.random.normal(KEY, (9, 4)), "bias": jnp.ones(4)},
    "conv": {"kernel": jax.random.normal(KEY, (3, 3, 2, 3))},
}
OPERATORS = {"dense/kernel": Dense(), "conv/kernel": Convolution((6, 6, 2))}
TRANSFORMATIONS = {
    "penalty": functools.partial(lipschitz.spectral_norm_penalty, 0.1, KEY),
    "orthogonality": functools.partial(lipschitz.orthogonality_penalty, 0.1),
    "power": functools.partial(lipschitz.project_spectral_norm, 1.0),
    "upper_bound": functools.partial(lipschitz.project_spectral_norm, 1.0, norm="upper_bound"),
}
every_transformation = pytest.mark.parametrize("name", TRANSFORMATIONS)
KERNELS = {
    "zero": jnp.zeros((3, 3, 2, 2)),
    "rank one": jnp.ones((3, 3, 2, 2)),
    "1×1": jnp.ones((1, 1, 2, 3)),
    "one channel": jnp.ones((3, 1, 1)),
    "equal singular values": jnp.eye(4),
    "zero matrix": jnp.zeros((3, 4)),
}
MAPS = {
    f"{case}/kernel": Dense()
    if x.ndim == 2
    else Convolution((16,) * (x.ndim - 2) + x.shape[-2:-1], padding="CIRCULAR")
    for case, x in KERNELS.items()
}


@pytest.mark.nightly_except("*-orthogonality")
@every_transformation
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.nightly)]
)
def test_degenerate_kernels_stay_finite_and_keep_dtypes(name, dtype):
    params = {case: {"kernel": kernel.astype(dtype)} for case, kernel in KERNELS.items()}
    tx = TRANSFORMATIONS[name](operators=MAPS)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        return (optax.apply_updates(params, updates), state), updates

    (params, state), updates = jax.jit(
        lambda params: jax.lax.scan(step, (params, tx.init(params)), length=3)
    )(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((params, updates, state)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}
    if name in ("power", "upper_bound"):
        eps = float(jnp.finfo(dtype).eps)
        for case in ("equal singular values", "1×1", "rank one"):
            linear_map = MAPS[f"{case}/kernel"]
            sigma = lipschitz.spectral_norm_upper_bound(params[case]["kernel"], linear_map)
            assert sigma <= 1.05 * (1 + 4 * eps)


@pytest.mark.nightly_except("power", "upper_bound")
@every_transformation
def test_init_reads_only_shapes_and_checkpoints_round_trip(name, tmp_path):
    tx, params = TRANSFORMATIONS[name](operators=OPERATORS), PARAMS
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = tx.init(shapes)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, tx.init(params))
    _, state = tx.update(optax.tree.zeros_like(params), state, params)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.nightly_except("upper_bound*", "power*")
@every_transformation
def test_sharded_kernels_give_the_same_updates(name):
    tx, params = TRANSFORMATIONS[name](), {"kernel": jax.random.normal(KEY, (16, 8))}

    @jax.jit
    def update(params):
        return first_update(tx, params)[0]

    expected = update(params)
    with jax.set_mesh(jax.make_mesh((8,), ("model",), (jax.sharding.AxisType.Auto,))):
        actual = update(jax.device_put(params, P("model")))
    np.testing.assert_allclose(actual["kernel"], expected["kernel"], atol=1e-5)


@pytest.mark.nightly_except("*-traced-*")
@pytest.mark.parametrize("way", ["opt.update", "make_train_step"])
@pytest.mark.parametrize("operators", ["none", "traced", "by hand"])
@pytest.mark.parametrize(
    ("name", "expected"), [("penalty", [2.7, 1.0]), ("power", [1.0, 1 / 3])], ids=["3−.1·3", "W/3"]
)
def test_they_work_inside_an_nnx_optimizer(name, expected, operators, way):
    """Singular values that were 3 and 1, after a step with a zero gradient and learning rate 1."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model.kernel[...] = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    graphdef, params = nnx.split(model)
    x = jnp.ones((4, 3))
    maps = {
        "none": None,
        "traced": lipschitz.linear_maps(lambda p, x: nnx.merge(graphdef, p)(x), params, x),
        "by hand": {"kernel": lipschitz.Dense()},
    }[operators]
    chain = {
        "penalty": (lipschitz.spectral_norm_penalty(0.1, KEY, operators=maps), optax.sgd(1.0)),
        "power": (optax.sgd(1.0), lipschitz.project_spectral_norm(1.0, operators=maps)),
    }[name]

    def loss_fn(model, x):
        return 0 * jnp.mean(model(x))

    optimizer = nnx.Optimizer(model, optax.chain(*chain), wrt=nnx.Param)
    if way == "opt.update":
        optimizer.update(model, nnx.grad(loss_fn)(model, x))
    else:
        nnx.jit(make_train_step(loss_fn))(model, optimizer, x)
    np.testing.assert_allclose(jnp.diagonal(model.kernel[...]), expected, rtol=1e-5)


def test_nnx_variables_have_the_paths_of_their_arrays():
    graphdef, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))

    def network(params, x):
        return nnx.merge(graphdef, params)(x)

    x = jnp.ones((4, 3))
    assert list(lipschitz.linear_maps(network, state, x)) == ["kernel"]
    assert list(lipschitz.lipschitz_bound(network, state, x).layers) == ["kernel"]
    assert list(lipschitz.spectral_normalization_state(state, KEY).inputs) == ["kernel"]
    kernel, bias = (
        measures.restrict(
            lambda p: jnp.sum(network(p, x)), state, lambda path, name=name: path == name
        )
        for name in ("kernel", "bias")
    )
    assert (list(kernel[1]), list(bias[1])) == (["kernel"], ["bias"])
    np.testing.assert_allclose(jax.grad(bias[0])(bias[1])["bias"], [4, 4])


@pytest.mark.slow
@pytest.mark.nightly_except("power")
@pytest.mark.parametrize("name", ["penalty", "power"])
def test_a_step_of_a_cnn_costs_at_most_5_percent_more(name):
    """FLOPs at batch size 128 by XLA's analysis. The iteration works on a single example."""
    keys = jax.random.split(KEY, 4)
    params = {
        f"layer{i}": {"kernel": jax.random.normal(key, shape) / 30}
        for i, (key, shape) in enumerate(
            zip(keys, [(3, 3, 3, 32), (3, 3, 32, 64), (3, 3, 64, 64), (1024, 10)], strict=True)
        )
    }
    x, labels = jnp.ones((128, 32, 32, 3)), jnp.zeros(128, jnp.int32)

    def network(params, x):
        for i in range(3):
            kernel = params[f"layer{i}"]["kernel"]
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
            x = jax.nn.gelu(x)
        return x.reshape(len(x), -1) @ params["layer3"]["kernel"]

    def loss(params):
        logits = network(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    operators = lipschitz.linear_maps(network, params, x)
    assert len(operators) == 4
    added = {
        "penalty": lipschitz.spectral_norm_penalty(0.1, KEY, operators=operators),
        "power": lipschitz.project_spectral_norm(1.0, operators=operators),
    }

    def flops(tx):
        def step(params, state):
            return tx.update(jax.grad(loss)(params), state, params)

        return jax.jit(step).lower(params, tx.init(params)).compile().cost_analysis()["flops"]

    # XLA counts the body of the warm-up loop once, and the iteration after it once.
    assert flops(added[name]) <= 1.05 * flops(optax.identity())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipschitz.spectral_norm_penalty(-0.1, KEY), "penalty must be finite and at least"),
        (lambda: lipschitz.orthogonality_penalty(-1), "penalty must be"),
        (lambda: lipschitz.project_spectral_norm(-1.0), "bound must be"),
        (lambda: lipschitz.project_spectral_norm(0), "a positive bound"),
        (lambda: lipschitz.project_spectral_norm(np.float32(0)), "a positive bound"),
        (lambda: lipschitz.project_spectral_norm(1.0, norm="exact"), "'power' or 'upper_bound'"),
        (
            lambda: lipschitz.project_norm(1, 1.0, operators=OPERATORS).init(PARAMS),
            "takes a dense kernel, but conv/kernel",
        ),
        (
            lambda: lipschitz.project_norm(2, 1.0).init({"kernel": jnp.ones((2, 2))}),
            "ord must be 1 or jnp.inf",
        ),
        (
            lambda: lipschitz.project_spectral_norm(1.0, operators={}).init(PARAMS),
            "operators is empty. linear_maps.*did not find any",
        ),
        (
            lambda: lipschitz.orthogonality_penalty(
                1.0, operators={"conv/kernel": lipschitz.Linear(jnp.multiply, (3, 3, 2, 3))}
            ).init(PARAMS),
            "orthogonality_penalty cannot treat conv/kernel as a matrix",
        ),
        (
            lambda: lipschitz.project_spectral_norm(1.0).init({"w": jnp.ones((2, 2))}),
            "where=lambda path",
        ),
        (
            lambda: lipschitz.project_spectral_norm(
                1.0, operators={"other/kernel": lipschitz.Dense()}
            ).init(PARAMS),
            "operators contains the paths other/kernel",
        ),
        (
            lambda: lipschitz.spectral_norm_penalty(
                1.0, KEY, where=lambda path: "bias" in path
            ).init(PARAMS),
            "dense/bias has shape",
        ),
        (
            lambda: lipschitz.spectral_norm_penalty(1.0, KEY, operators=OPERATORS).update(
                PARAMS, None
            ),
            "tx.update",
        ),
    ],
)
def test_errors_show_the_corrected_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()
