"""``axis_name`` in an NNX step: every device makes the step of the whole batch."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.devices import DEVICES, assert_each_device_has, on_devices, stacked_parts
from tests.support.networks.nnx_models import Noisy, arrays, in_float64
from tests.support.steps import examples, x64

nightly = pytest.mark.nightly


def on_device(graphdef, **options):
    """The step as a function of the state of the model and the optimizer."""

    def step(state, batch):
        model, optimizer = nnx.merge(graphdef, state, copy=True)
        metrics = make_train_step(classification_loss, **options)(model, optimizer, batch)
        count = model.dropout.rngs.count[...] if hasattr(model, "dropout") else 1
        keys = arrays(model, nnx.RngKey)
        return arrays(model, nnx.Param), arrays(model, nnx.BatchStat), metrics, count, keys

    return step


@pytest.mark.slow
@x64
@pytest.mark.parametrize(
    "setting",
    ["shard_map", *(pytest.param(x, marks=nightly) for x in ("pmap", "shard_map_unchecked"))],
)
def test_each_device_makes_the_step_of_the_whole_batch(setting):
    """By hand: device i has the keys of the model with i folded in, and losses are averaged."""
    batch = examples(jnp.float64, count=4 * DEVICES)
    model = in_float64(Noisy(nnx.Rngs(0)))
    keys = arrays(model, nnx.RngKey)
    tx = optax.chain(flatreg.penalized_gradient(0.3, 0.7), optax.sgd(1.0))
    graphdef, state = nnx.split((model, Optimizer(model, tx, wrt=nnx.Param)))
    model_def, params, rest = nnx.split(model, nnx.Param, ...)

    def one_device(params, i, part):
        copy = nnx.merge(model_def, params, rest, copy=True)
        copy.dropout.rngs.key[...] = jax.random.fold_in(copy.dropout.rngs.key[...], i)
        loss, metrics = classification_loss(copy, part)
        return loss, (arrays(copy, nnx.BatchStat), metrics | {"loss": loss})

    def by_hand(params):
        outs = jax.vmap(one_device, in_axes=(None, 0, 0))(
            params, jnp.arange(DEVICES), stacked_parts(batch)
        )
        return jax.tree.map(lambda x: x.mean(0), outs)

    @jax.jit
    def expected(params):
        g, (statistics, metrics) = jax.grad(by_hand, has_aux=True)(params)
        shifted = optax.tree.add_scale(params, 0.3 / optax.tree.norm(g), g)
        there, _ = jax.grad(by_hand, has_aux=True)(shifted)
        new = jax.tree.map(lambda w, g, h: w - 0.3 * g - 0.7 * h, params, g, there)
        return jax.tree.leaves(new), statistics, metrics | {"skipped": False}, 1, keys

    actual = on_devices(setting, on_device(graphdef, axis_name="data"))(state, batch)
    assert_each_device_has(actual, expected(params))


class Synchronized(nnx.Module):
    """A network whose BatchNorm uses the statistics of all devices, if ``axis_name`` is given."""

    def __init__(self, axis_name=None):
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, axis_name=axis_name, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.norm(self.body(x))))


@pytest.mark.slow
@x64
@pytest.mark.parametrize("setting", [pytest.param("shard_map", marks=nightly), "pmap"])
def test_synchronized_batchnorm_equals_one_device(setting):
    batch = examples(jnp.float64, count=2 * DEVICES)
    tx = optax.chain(flatreg.sam(0.3), optax.sgd(1.0))
    outs = []
    for axis_name in (None, "data"):
        model = in_float64(Synchronized(axis_name))
        graphdef, state = nnx.split((model, Optimizer(model, tx, wrt=nnx.Param)))
        step = on_device(graphdef, axis_name=axis_name)
        run = on_devices(setting, step) if axis_name else jax.jit(step)
        outs.append(run(state, batch))
    assert_each_device_has(outs[1], outs[0])
