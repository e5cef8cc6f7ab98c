"""The Linen train state: frozen parameters, collections, donation, scans and sharding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
from flax.training.dynamic_scale import DynamicScale

import flatreg
from flatreg.linen import TrainState, classification_loss, make_train_step
from tests.support.assertions import assert_close, assert_equal
from tests.support.networks.linen_models import Noisy, Plain, state_of, trained
from tests.support.steps import chain, examples

KEY = jax.random.key(1)


def flops(state, batch):
    step = jax.jit(make_train_step(classification_loss))
    return step.lower(state, batch).compile().cost_analysis()["flops"]


def initialized(model, tx, x, **kwargs):
    return jax.jit(lambda: TrainState.init(model, tx, KEY, x, train=False, **kwargs))()


@pytest.mark.slow
def test_frozen_parameters_stay_and_cost_no_gradient():
    """Training the head alone equals training a dense layer on the features of the body."""
    batch, model, tx = examples(count=64), Plain(width=128), chain(flatreg.sam(0.3))
    whole = initialized(model, tx, batch[0])
    head = initialized(model, tx, batch[0], trainable=lambda path: path.startswith("head/"))
    assert_equal(head.variables, whole.variables)
    assert list(head.params) == ["head"]
    assert len(jax.tree.leaves(head.opt_state)) == len(jax.tree.leaves(head.params))

    new = trained(jax.jit(make_train_step(classification_loss)), head, [batch] * 2)
    assert_equal(new.frozen, head.frozen)
    assert np.any(new.params["head"]["kernel"] != head.params["head"]["kernel"])
    assert flops(head, batch) < 0.75 * flops(whole, batch)

    features = np.tanh(batch[0] @ head.frozen["body"]["kernel"] + head.frozen["body"]["bias"])
    dense = nn.Dense(3).apply
    alone = TrainState.create(
        apply_fn=lambda variables, x, train, **kwargs: dense(variables, x, **kwargs),
        params=head.params["head"],
        tx=tx,
    )
    alone = trained(
        jax.jit(make_train_step(classification_loss)), alone, [(features, batch[1])] * 2
    )
    assert_close(new.params["head"], alone.params, 1e-5)


class Adapted(nn.Module):
    """A dense layer with a low-rank update."""

    @nn.compact
    def __call__(self, x, train):
        down = nn.Dense(2, use_bias=False, name="lora_down")(x)
        up = nn.Dense(3, use_bias=False, kernel_init=nn.initializers.zeros, name="lora_up")(down)
        return nn.Dense(3, name="dense")(x) + up


def test_low_rank_fine_tuning_selects_parameters_by_path():
    batch = examples()
    state = initialized(Adapted(), chain(flatreg.sam()), batch[0], trainable=lambda p: "lora" in p)
    assert (set(state.params), set(state.frozen)) == ({"lora_down", "lora_up"}, {"dense"})
    new = trained(jax.jit(make_train_step(classification_loss)), state, [batch] * 30)
    losses = [
        classification_loss(lambda x, train: s.apply_fn(s.variables, x, train), batch, False)[0]  # noqa: B023
        for s in (state, new)
    ]
    assert losses[1] < 0.9 * losses[0]


def test_init_splits_its_key_in_two():
    """The key that initializes the parameters does not draw dropout masks, too."""
    x, model = examples()[0], Noisy()
    state = initialized(model, chain(flatreg.sam()), x)
    init_key, step_key = jax.random.split(KEY)
    assert_equal(state.key, step_key)
    assert_close(state.params, model.init(init_key, x, train=False)["params"], 1e-6)


def test_init_keeps_every_collection_of_the_model():
    batch = examples()
    state = initialized(Noisy(), chain(flatreg.sam()), batch[0], dynamic_scale=DynamicScale())
    assert list(state.batch_stats) == ["BatchNorm_0"]
    assert state.collections == {}
    assert (state.step.dtype, state.skipped.dtype) == (jnp.int32, jnp.int32)
    assert isinstance(state, train_state.TrainState)


def test_the_whole_state_is_donated(recwarn):
    batch = examples()
    tx = optax.chain(flatreg.observe(flatreg.sam(0.3)), optax.adam(0.1))
    state = initialized(
        Noisy(), tx, batch[0], trainable=lambda p: "Dense_1" in p, dynamic_scale=DynamicScale()
    )
    new, _ = jax.jit(make_train_step(classification_loss), donate_argnums=0)(state, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(new))
    assert not [w for w in recwarn if "donated" in str(w.message)]


def test_arrays_that_an_optimizer_shares_are_copied():
    """Two leaves with one buffer could not be donated."""
    params = {"w": jnp.ones(3)}
    anchored = optax.GradientTransformation(lambda params: (params, params), lambda g, s, p: (g, s))
    state = TrainState.create(apply_fn=None, params=params, tx=anchored)
    jax.jit(lambda state: state, donate_argnums=0)(state)


def test_steps_run_in_a_scan():
    """The state keeps its dtypes: the statistics of a float64 network stay in float32."""
    with jax.enable_x64(True):
        batches = jax.tree.map(lambda *x: jnp.stack(x), *[examples(jnp.float64)] * 3)
        state = initialized(
            Noisy(), chain(flatreg.sam(optax.linear_schedule(0, 1, 9))), batches[0][0]
        )
        state = state.replace(dynamic_scale=None)
        step = make_train_step(classification_loss)
        assert state.batch_stats["BatchNorm_0"]["mean"].dtype == jnp.float32
        end, metrics = jax.jit(lambda s, b: jax.lax.scan(step, s, b))(state, batches)
        assert end.step == len(metrics["loss"]) == 3


@pytest.mark.slow
def test_averaged_parameters_can_be_kept_and_evaluated():
    batches = [examples(seed=seed) for seed in range(4)]
    state = state_of(Plain(), chain(flatreg.sam()), batches[0][0])
    step = make_train_step(classification_loss)

    @jax.jit
    def averaged(state, average, batch):
        state, metrics = step(state, batch)
        return state, optax.incremental_update(state.params, average, 0.1), metrics

    plain, average, expected = state, state.params, state.params
    for batch in batches:
        state, average, _ = averaged(state, average, batch)
        plain = trained(jax.jit(step), plain, [batch])
        expected = jax.tree.map(lambda a, w: 0.9 * a + 0.1 * w, expected, plain.params)
    assert_close(average, expected, 1e-6)
    evaluate = jax.jit(flatreg.linen.make_eval_step(classification_loss))
    assert evaluate(state.replace(params=average), batches[0])["loss"] > 0


def test_apply_gradients_equals_flax_s_with_a_plain_optimizer():
    batch = examples()
    ours = state_of(Plain(), optax.adam(0.1), batch[0])
    flaxs = train_state.TrainState.create(
        apply_fn=ours.apply_fn, params=ours.params, tx=optax.adam(0.1)
    )
    other = optax.sgd(0.2)
    for _ in range(3):
        grads = jax.tree.map(jnp.sin, ours.params)
        ours, flaxs = ours.apply_gradients(grads=grads), flaxs.apply_gradients(grads=grads)
    assert_close((ours.params, ours.opt_state), (flaxs.params, flaxs.opt_state), 1e-6)
    replaced = ours.apply_gradients(grads=grads, tx=other, collections={}, key=jax.random.key(9))
    assert replaced.tx is other
    assert_equal(replaced.key, jax.random.key(9))


class Eighths(nn.Module):
    """A dense layer in 8-bit floats, whose scales are replaced by their gradients."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp)(x)


@pytest.mark.slow
@pytest.mark.nightly_except("2")
@pytest.mark.parametrize("shards", [1, 2])
def test_fp8_scales_come_from_the_clean_pass_alone(shards):
    """The clean pass replaces them, and no method perturbs them."""
    x = jax.random.normal(jax.random.key(0), (16, 16))
    batch = x, jnp.arange(16)
    method = flatreg.sam(0.3) if shards == 1 else flatreg.per_shard(flatreg.sam(0.3))
    state = initialized(Eighths(), chain(method), x)
    step = jax.jit(make_train_step(classification_loss, shards=shards))
    new = trained(step, state, [batch] * 3)
    history = new.params[OVERWRITE_WITH_GRADIENT]["Dense_0"]["Fp8DirectDotGeneralOp_0"]
    largest = float(jnp.max(jnp.abs(x)))
    np.testing.assert_allclose(np.max(history["input_amax_history"]), largest, rtol=0.3)
    assert np.all(np.isfinite(jax.tree.leaves(new.params)[0]))
    assert new.skipped == 0
    losses = [step(s, batch)[1]["loss"] for s in (state, new)]
    assert losses[1] < losses[0]


class Partitioned(nn.Module):
    """A network whose kernels name the mesh axis over which they are sharded."""

    @nn.compact
    def __call__(self, x, train):
        split = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16, kernel_init=split)(x))
        return nn.Dense(8, kernel_init=split)(nn.tanh(x))


@pytest.mark.slow
def test_parameters_with_flax_s_partitioning_stay_in_place():
    batch, tx = examples(), chain(flatreg.sam(0.3))
    init = lambda: TrainState.init(Partitioned(), tx, KEY, batch[0], train=False)  # noqa: E731
    mesh = jax.sharding.Mesh(jax.devices(), "model")
    shardings = nn.get_sharding(jax.eval_shape(init), mesh)
    state = jax.jit(init, out_shardings=shardings)()
    kernel = state.params["Dense_0"]["kernel"].value
    assert kernel.addressable_shards[0].data.shape == (4, 2)
    step = make_train_step(classification_loss)
    new = trained(jax.jit(step, out_shardings=(shardings, None)), state, [batch] * 3)
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    alone = trained(jax.jit(step), jax.device_put(state, jax.devices()[0]), [batch] * 3)
    assert_close(nn.meta.unbox(new.params), nn.meta.unbox(alone.params), 1e-5)
