"""``axis_name`` in a Linen step: every device makes the step of the whole batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from flatreg.linen import TrainState, classification_loss, make_train_step
from tests.support.devices import (
    DEVICES,
    SETTINGS,
    assert_each_device_has,
    on_devices,
    stacked_parts,
)
from tests.support.networks.linen_models import Noisy, Plain, clean_forward, state_of
from tests.support.steps import examples, x64

nightly = pytest.mark.nightly
SCALE = 3.0


def scaled_loss(apply, batch, train):
    loss, metrics = classification_loss(apply, batch, train)
    return SCALE * loss, metrics | {"examples": len(batch[0])}


@pytest.mark.slow
@x64
@pytest.mark.parametrize(
    "setting", ["pmap", "shard_map", *(pytest.param(x, marks=nightly) for x in SETTINGS[2:])]
)
def test_each_device_makes_the_step_of_the_whole_batch(setting):
    """By hand: device i has the key of the step with i folded in, and losses are averaged.

    The network has BatchNorm and dropout. Statistics are averages of those of the devices.
    """
    batch = examples(jnp.float64, count=4 * DEVICES)
    tx = optax.chain(flatreg.penalized_gradient(0.3, 0.7), optax.sgd(1.0))
    state = state_of(Noisy(), tx, batch[0])
    of_step = jax.random.fold_in(state.key, state.step)

    def by_hand(params):
        def one_device(i, part):
            return clean_forward(state.replace(key=of_step, step=i), params, part)

        outs = jax.vmap(one_device)(jnp.arange(DEVICES), stacked_parts(batch))
        loss, statistics = jax.tree.map(lambda x: x.mean(0), outs)
        return SCALE * loss, statistics

    @jax.jit
    def expected(params):
        (loss, statistics), g = jax.value_and_grad(by_hand, has_aux=True)(params)
        shifted = optax.tree.add_scale(params, 0.3 / optax.tree.norm(g), g)
        there, _ = jax.grad(by_hand, has_aux=True)(shifted)
        new = jax.tree.map(lambda w, g, h: w - 0.3 * g - 0.7 * h, params, g, there)
        return new, statistics, loss, len(batch[0]) // DEVICES

    def step(state, batch):
        new, metrics = make_train_step(scaled_loss, axis_name="data")(state, batch)
        return new.params, new.batch_stats, metrics["loss"], metrics["examples"]

    assert_each_device_has(on_devices(setting, step)(state, batch), expected(state.params))


def test_one_bad_example_skips_the_step_on_all_devices():
    x, labels = examples(count=DEVICES)
    state = state_of(Plain(), optax.chain(flatreg.sam(0.3), optax.adam(0.1)), x)

    def step(state, batch):
        new, metrics = make_train_step(classification_loss, axis_name="data")(state, batch)
        return new.params, metrics["skipped"], new.skipped

    out = on_devices("vmap", step)(state, (x.at[-1].set(jnp.nan), labels))
    assert_each_device_has(out, (state.params, True, 1))


class Synchronized(nn.Module):
    """A network whose BatchNorm uses the statistics of all devices, if ``axis_name`` is given."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(not train, axis_name=self.axis_name, param_dtype=x.dtype)(x)
        return nn.Dense(3, param_dtype=x.dtype)(nn.tanh(x))


@pytest.mark.slow
@x64
@pytest.mark.parametrize(
    ("setting", "hvp"),
    [
        pytest.param("shard_map", flatreg.reverse_hvp, marks=nightly),
        pytest.param("pmap", flatreg.exact_hvp, marks=nightly),
        ("pmap", flatreg.reverse_hvp),
        pytest.param("shard_map", flatreg.exact_hvp, marks=nightly),
        pytest.param("shard_map_unchecked", flatreg.reverse_hvp, marks=nightly),
    ],
)
def test_synchronized_batchnorm_equals_one_device(setting, hvp):
    """The second derivative passes through the averages over devices, too."""
    batch = examples(jnp.float64, count=2 * DEVICES)
    tx = optax.chain(
        flatreg.combine(flatreg.sam(0.3), flatreg.gradient_regularization(0.1, hvp=hvp)),
        optax.sgd(1.0),
    )

    def step(state, batch, **options):
        new, metrics = make_train_step(classification_loss, **options)(state, batch)
        return new.params, new.batch_stats, metrics

    state = TrainState.init(Synchronized(), tx, jax.random.key(0), batch[0], train=False)
    expected = jax.jit(step)(state, batch)
    synchronized = state.replace(apply_fn=Synchronized("data").apply)
    actual = on_devices(setting, lambda s, b: step(s, b, axis_name="data"))(synchronized, batch)
    assert_each_device_has(actual, expected)


def test_the_axis_must_exist():
    state = state_of(Noisy(), optax.chain(flatreg.sam(), optax.sgd(0.1)), examples()[0])
    with pytest.raises(ValueError, match=r"no axis has this name.*jax\.pmap\(step, axis_name="):
        make_train_step(classification_loss, axis_name="data")(state, examples())
    with pytest.raises(ValueError, match="shards and axis_name cannot be used together"):
        make_train_step(classification_loss, axis_name="data", shards=2)
