"""Everything is traceable with strict dtype promotion and without rank promotion."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
import flatreg.linen
import flatreg.nnx
from flatreg import lipschitz, measures
from tests.support.problems import METHODS, OPTIONS, tanh_net, training_step

KEY = jax.random.key(0)
KERNEL = jnp.ones((3, 4))
WIDE = {"dense": {"kernel": KERNEL}, "conv": {"kernel": jnp.ones((3, 3, 2, 4))}}
OPERATORS = {
    "dense/kernel": lipschitz.Dense(),
    "conv/kernel": lipschitz.Convolution((6, 6, 2)),
}
# The function in the test of a method that uses optax.tree.update_moment is not strict itself.
STRICT = [name for name in METHODS if name != "averaging"]
BALL = {"steps": 2, "random_starts": 1}
SLOW = {"hessian_lipschitz", "differences", "zeroth_order", "first_order"}  # to trace
every_dtype = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.nightly)]
)


@pytest.fixture(autouse=True)
def flags():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def loss_fn(params, batch):
    """The mean squared error of a tanh network, computed in float32."""
    x, y, hidden, out = (
        jax.tree.map(lambda x: x.astype(jnp.float32), tree)
        for tree in (*batch, params["hidden"], params["out"])
    )
    h = jnp.tanh(x @ hidden["kernel"] + hidden["bias"][None])
    return jnp.mean((h @ out - y) ** 2)


def batch_fn(params, x):
    return jnp.tanh(x @ params["hidden"]["kernel"]) @ params["out"][:, None]


@pytest.mark.nightly_except(
    "sam-*", "gam-*", "gam_accelerated-*", "perturbed_*", "looksam-*", "combine-*"
)
@every_dtype
@pytest.mark.parametrize("name", STRICT)
def test_methods(name, dtype):
    params, batch = tanh_net(dtype)
    tx = METHODS[name]()
    step = training_step(tx, loss_fn, **OPTIONS.get(name, {}))
    jax.eval_shape(step, (params, tx.init(params)), batch)


@pytest.mark.parametrize("options", [{"microbatches": 2}, {"ascent_fraction": 0.5}], ids=repr)
def test_parts_of_a_batch(options):
    params, batch = tanh_net(jnp.bfloat16)
    tx = flatreg.gam(0.1, 1.0)
    jax.eval_shape(training_step(tx, loss_fn, **options), (params, tx.init(params)), batch)


def dataset_loss(batch):
    return measures.dataset_loss(loss_fn, batch, batch_size=7)


MEASURES = {
    "top_eigenpairs": lambda f, w: measures.top_eigenpairs(f, w, KEY, 2),
    "trace": lambda f, w: measures.trace(
        f, w, KEY, probes=2, deflate=measures.top_eigenpairs(f, w, KEY)
    ),
    "diagonal": lambda f, w: measures.diagonal(f, w, KEY, probes=2),
    "exact": lambda f, w: (measures.diagonal(f, w, probes=None), measures.trace(f, w, probes=None)),
    "density": lambda f, w: measures.density_on_grid(
        measures.spectral_density(f, w, KEY, probes=2, steps=3), jnp.linspace(0, 1, 5), 0.1
    ),
    "hessian_lipschitz": lambda f, w: measures.hessian_lipschitz(f, w, KEY, 0.1, steps=2),
    "differences": lambda f, w: measures.hessian_lipschitz(
        f,
        w,
        KEY,
        0.1,
        steps=2,
        curvature=functools.partial(measures.hessian, hvp=flatreg.finite_difference_hvp(0.01)),
    ),
    "gradient_norm": lambda f, w: measures.gradient_norm(f, w),
    "zeroth_order": lambda f, w: measures.zeroth_order_flatness(f, w, KEY, 0.1, **BALL),
    "first_order": lambda f, w: measures.first_order_flatness(f, w, KEY, jnp.float32(0.1), **BALL),
    "noise_robustness": lambda f, w: measures.noise_robustness(f, w, KEY, [0.1, 0.2], draws=2),
    "expected_sharpness": lambda f, w: measures.expected_sharpness(f, w, KEY, 0.1, draws=2),
    "pacbayes_sigma": lambda f, w: measures.pacbayes_sigma(f, w, KEY, 0.1, draws=2),
    "pacbayes_bound": lambda f, w: measures.pacbayes_bound(
        0.1, 10.0, n=1000, delta=0.05, loss_range=(0.0, 1.0)
    ),
    "pacgen": lambda f, w: measures.pacgen(w, w, 0.1),
    "uniform_noise": lambda f, w: (
        measures.optimal_noise(w, 0.1, 0.5, 0.01),
        measures.expected_loss_bound(1.0, 0.1, w, 0.1, 0.5),
        measures.uniform_kl(w, 0.1, 1.0),
    ),
    "filter_normalized": lambda f, w: measures.filter_normalized(w, KEY),
    "loss_slice": lambda f, w: measures.loss_slice(f, w, (w, jnp.arange(3.0)), (w, [0.5])),
    "interpolate": lambda f, w: measures.interpolate(f, w, w, [0.0, 0.5]),
    "regularizer": lambda f, w: measures.implicit_gradient_regularizer(f, w),
    "modified_loss": lambda f, w: measures.gradient_flow(
        measures.modified_loss(f, 0.1), w, [1.0, 2.0], steps_between=2
    ),
    "gradient_statistics": lambda f, w: measures.gradient_statistics(
        loss_fn, w, tanh_net(jnp.bfloat16)[1]
    ),
    "modified_minibatch_loss": lambda f, w: measures.modified_minibatch_loss(
        loss_fn, 0.1, jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), tanh_net()[1])
    )(w),
}


@every_dtype
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.nightly] * (x in SLOW)) for x in MEASURES]
)
def test_measures(name, dtype):
    params, batch = tanh_net(dtype)
    jax.eval_shape(lambda params: MEASURES[name](dataset_loss(batch), params), params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "tx",
    [
        lipschitz.project_spectral_norm(1.0, operators=OPERATORS),
        lipschitz.project_spectral_norm(
            optax.constant_schedule(1.0), norm="upper_bound", operators=OPERATORS
        ),
        lipschitz.project_norm(1, 1.0, where=lambda path: path == "dense/kernel"),
        lipschitz.spectral_norm_penalty(0.1, KEY, operators=OPERATORS),
        lipschitz.orthogonality_penalty(0.1, operators=OPERATORS),
    ],
    ids=["power", "upper_bound", "induced", "spectral", "orthogonal"],
)
def test_links_of_lipschitz(tx, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), WIDE)
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: lipschitz.spectral_norm(w["hidden"]["kernel"], key=KEY),
        lambda w, x: lipschitz.spectral_norm_upper_bound(w["hidden"]["kernel"]),
        lambda w, x: lipschitz.input_sensitivity(functools.partial(batch_fn, w), x),
        lambda w, x: lipschitz.geometric_complexity(functools.partial(batch_fn, w), x),
        lambda w, x: lipschitz.input_gradient_penalty(functools.partial(batch_fn, w), x),
        lambda w, x: lipschitz.interpolated_gradient_penalty(
            lambda x: batch_fn(w, x)[:, 0], x, x, KEY
        ),
        lambda w, x: lipschitz.lipschitz_lower_bound(batch_fn, w, x, KEY).lower,
        lambda w, x: lipschitz.lipschitz_bound(batch_fn, tanh_net()[0], jnp.ones((1, 4))).upper,
    ],
)
def test_functions_of_lipschitz(function):
    params, (x, _) = tanh_net()
    jax.eval_shape(function, params, x)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        del train
        return (x @ self.param("kernel", nn.initializers.lecun_normal(), (4, 3))).astype(
            jnp.float32
        )


def classes(dtype):
    return jnp.ones((6, 4), dtype), jnp.arange(6) % 3


def test_linen_steps():
    batch = classes(jnp.float32)
    tx = optax.chain(flatreg.observe(flatreg.sam(0.1)), optax.sgd(0.1))
    state = flatreg.linen.TrainState.init(Dense(), tx, KEY, batch[0], train=False)
    step = flatreg.linen.make_train_step(flatreg.linen.classification_loss)
    jax.eval_shape(step, state, batch)


def test_nnx_steps():
    model = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    tx = optax.chain(flatreg.observe(flatreg.sam(0.1)), optax.sgd(0.1))

    def loss_fn(model, batch):
        x, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean(), {}

    step = flatreg.nnx.make_train_step(loss_fn)
    nnx.jit(step)(model, flatreg.nnx.Optimizer(model, tx, wrt=nnx.Param), classes(jnp.float32))
