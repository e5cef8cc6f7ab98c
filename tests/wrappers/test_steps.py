"""Wrappers in complete training steps: skipped steps, train steps, devices, checkpoints, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatreg
import flatreg.nnx
from flatreg import checkpoint
from flatreg.linen import classification_loss, make_train_step
from tests.core.test_sharding import REPLICATED, SHARDED, collectives, gathering_loss
from tests.support.assertions import assert_close as assert_trees_close
from tests.support.assertions import assert_equal as assert_trees_equal
from tests.support.networks import nnx_models
from tests.support.networks.linen_models import Noisy, Plain, state_of
from tests.support.problems import assert_close, avals, loss_fn, tanh_net
from tests.support.steps import examples

GROUP = 2
WRAPPERS = {
    "revisit": functools.partial(flatreg.revisit, rho=0.1, group=GROUP),
    "revisit_bfloat16": functools.partial(
        flatreg.revisit, rho=0.1, group=GROUP, direction_dtype=jnp.bfloat16
    ),
    "previous_gradient_sam": functools.partial(flatreg.previous_gradient_sam, rho=0.1),
    "momentum_sam": functools.partial(flatreg.momentum_sam, rho=0.1),
}


def optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))


def training_step(tx, loss=loss_fn):
    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return step


def batches(count):
    return [tanh_net(seed=seed)[1] for seed in range(count)]


def in_groups(count, group=GROUP):
    return list(flatreg.revisited(batches(count), group))


class TestSkippedSteps:
    """A gradient that is not finite changes no weight, and the position in the group advances."""

    def run(self, bad, *, visits=2, steps=2 * 2 * GROUP):
        """The state of the chain before every step, and the clean parameters after it."""
        params, _ = tanh_net()
        tx = flatreg.revisit(optimizer(), 0.1, group=GROUP, visits=visits)
        state, seen = tx.init(params), []
        update = jax.jit(tx.update)
        data = list(flatreg.revisited(batches(8), GROUP, visits))[:steps]
        for t, batch in enumerate(data):
            g = jax.grad(loss_fn)(params, batch)
            if t in bad:
                g = jax.tree.map(lambda x, t=t: x.at[0].set(bad[t]), g)
            shift = state.shift
            updates, state = update(g, state, params)
            params = optax.apply_updates(params, updates)
            seen.append((shift, flatreg.eval_params(state, params), state, g))
        return seen

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_first_visit_that_is_skipped_makes_the_second_plain(self, value):
        seen = self.run({1: value})
        (_, before, state, _), (_, after, skipped, _) = seen[0], seen[1]
        assert_close(after, before)
        assert_trees_equal(skipped.inner_state, state.inner_state)
        assert (bool(state.last_finite), bool(skipped.last_finite)) == (True, False)
        assert optax.tree.norm(seen[2][0]) == pytest.approx(0.1)  # the other batch of the group
        assert optax.tree.norm(seen[3][0]) == 0
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(seen[-1][1]))
        assert [bool(s.radius > 0) for _, _, s, _ in seen] == [False, True, True, False] * 2

    def test_a_third_visit_uses_the_last_finite_gradient(self):
        seen = self.run({2: np.nan}, visits=3, steps=5)
        first = seen[0][3]
        expected = optax.tree.scale(0.1 / optax.tree.norm(first), first)
        assert_close(seen[2][0], expected)
        assert_close(seen[4][0], expected)

    def test_linen_step_counts_it_and_lowers_the_loss_scale(self):
        x, y = examples()
        tx = flatreg.revisit(optimizer(), 0.1, group=1)
        state = state_of(Noisy(), tx, x, dynamic_scale=DynamicScale(scale=8.0))
        step = jax.jit(make_train_step(classification_loss))
        state, metrics = step(state, (x, y))
        assert not metrics["skipped"]
        before = flatreg.eval_params(state.opt_state, state.params)
        new, metrics = step(state, (x.at[0].set(np.nan), y))
        assert metrics["skipped"]
        assert (new.step, new.skipped, new.dynamic_scale.scale) == (2, 1, 4.0)
        assert_trees_close(flatreg.eval_params(new.opt_state, new.params), before, 1e-6)
        assert_trees_equal(new.batch_stats, state.batch_stats)
        assert (new.opt_state.count, new.opt_state.radius) == (2, 0)

    def test_nnx_step_counts_it_and_keeps_the_group(self):
        model = nnx_models.Plain(nnx_models.nnx.Rngs(0))
        tx = flatreg.revisit(optimizer(), 0.1, group=1)
        opt = flatreg.nnx.Optimizer(model, tx, wrt=nnx_models.nnx.Param)
        step = flatreg.nnx.make_train_step(flatreg.nnx.classification_loss)
        step = nnx_models.nnx.jit(step)
        x, y = examples()
        step(model, opt, (x, y))
        params = nnx_models.nnx.state(model, nnx_models.nnx.Param)
        before = jax.tree.leaves(flatreg.eval_params(opt.opt_state, params))
        assert step(model, opt, (x.at[0].set(np.nan), y))["skipped"]
        params = nnx_models.nnx.state(model, nnx_models.nnx.Param)
        after = jax.tree.leaves(flatreg.eval_params(opt.opt_state, params))
        assert_trees_close(after, before, 1e-6)
        assert (opt.skipped[...], opt.opt_state.count[...]) == (1, 2)


@pytest.mark.slow
def test_linen_step_equals_a_plain_loop():
    """BatchNorm statistics and dropout masks are those of ordinary steps at the shifted point."""
    x, _ = examples()
    tx = flatreg.revisit(optimizer(), 0.3, group=GROUP)
    state = state_of(Noisy(), tx, x)
    data = [examples(seed=seed) for seed in flatreg.revisited(range(4), GROUP)]
    step = jax.jit(make_train_step(classification_loss, microbatches=1))
    params, opt_state, other = state.params, tx.init(state.params), state
    for batch in data:
        state, metrics = step(state, batch)
        loss, g = _noisy_gradient(other, params, batch)
        updates, opt_state = tx.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        other = state  # the same statistics and step count for the next pass
    assert_trees_close(state.params, params, 1e-5)


def _noisy_gradient(state, params, batch):
    from tests.support.networks.linen_models import clean_forward

    value_and_grad = jax.value_and_grad(clean_forward, argnums=1, has_aux=True)
    (loss, _), g = value_and_grad(state, params, batch)
    return loss, g


@pytest.mark.slow
def test_microbatches_do_not_change_a_revisit():
    x, _ = examples()
    states = []
    for microbatches in (1, 4):
        state = state_of(Plain(), flatreg.revisit(optimizer(), 0.3, group=GROUP), x)
        step = jax.jit(make_train_step(classification_loss, microbatches=microbatches))
        for seed in flatreg.revisited(range(4), GROUP):
            state, _ = step(state, examples(seed=seed))
        states.append(state)
    assert_trees_close(states[1].params, states[0].params, 1e-5)


def test_both_visits_can_have_the_same_dropout_mask():
    """The recipe of the guide: the number of the batch selects the key, not the number of steps."""
    x, _ = examples()
    state = state_of(Noisy(), flatreg.revisit(optax.sgd(0.0), 0.0, group=2), x)
    step, losses = jax.jit(make_train_step(classification_loss)), []
    for t in range(4):
        number = t // (2 * 2) * 2 + t % 2
        state, metrics = step(state.replace(step=jnp.int32(number)), examples(seed=number))
        losses.append(float(metrics["loss"]))
    assert losses[2:] == losses[:2]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_a_restart_in_the_middle_of_a_group_continues_bitwise(tmp_path):
    x, _ = examples()
    tx = flatreg.revisit(optax.adamw(0.05), optax.linear_schedule(0.1, 0.3, 12), group=3)
    step = jax.jit(make_train_step(classification_loss), donate_argnums=0)
    order = list(flatreg.revisited(range(6), 3))
    model = Noisy()
    state = state_of(model, tx, x)
    for t, seed in enumerate(order):
        if t in (2, 4):
            checkpoint.save(tmp_path / str(t), state)
        state, _ = step(state, examples(seed=seed))
    for t in (2, 4):
        resumed = checkpoint.restore(tmp_path / str(t), state_of(model, tx, x))
        for seed in order[t:]:
            resumed, _ = step(resumed, examples(seed=seed))
        assert_trees_equal(resumed, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(wrap, id=name, marks=[pytest.mark.nightly] * (name != "revisit_bfloat16"))
        for name, wrap in WRAPPERS.items()
    ],
)
def test_states_live_in_jit_scan_cond_and_vmap(wrap):
    params, _ = tanh_net()
    tx = wrap(optimizer())
    step, state = training_step(tx), tx.init(params)
    data = jax.tree.map(lambda *xs: jnp.stack(xs), *in_groups(4))
    assert avals(jax.eval_shape(step, (params, state), in_groups(2)[0])) == avals((params, state))
    eager = (params, state)
    for batch in in_groups(4):
        eager = step(eager, batch)

    def sometimes(carry, batch):
        return jax.lax.cond(True, lambda: step(carry, batch), lambda: carry), None

    scanned = jax.jit(lambda carry, data: jax.lax.scan(sometimes, carry, data)[0], donate_argnums=0)
    copies = jax.tree.map(jnp.copy, (params, state))
    assert_close(scanned(copies, data), eager)
    assert all(x.is_deleted() for x in jax.tree.leaves(copies) if x.ndim)
    leaves = jax.tree.leaves(tx.init(params))
    assert len({id(x) for x in leaves}) == len(leaves)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert avals(jax.eval_shape(tx.init, shapes)) == avals(state)
    mapped = optax.tree.map_params(tx, jnp.ones_like, state)
    assert avals(mapped) == avals(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharded", "axes"),
    [
        pytest.param(True, AxisType.Explicit, id="sharded-explicit"),
        pytest.param(True, AxisType.Auto, id="sharded-auto", marks=pytest.mark.nightly),
        pytest.param(False, AxisType.Explicit, id="replicated-explicit", marks=pytest.mark.nightly),
        pytest.param(False, AxisType.Auto, id="replicated-auto", marks=pytest.mark.nightly),
    ],
)
def test_eight_devices_keep_values_and_shardings(sharded, axes):
    txs = {name: wrap(optax.sgd(0.1, momentum=0.9)) for name, wrap in WRAPPERS.items()}
    loss = gathering_loss if sharded and axes == AxisType.Explicit else loss_fn
    data, (params, _) = in_groups(2), tanh_net()
    expected = {name: (params, tx.init(params)) for name, tx in txs.items()}
    for batch in data:
        expected = {name: training_step(tx)(expected[name], batch) for name, tx in txs.items()}

    def steps(carries, batch):
        return {name: training_step(tx, loss)(carries[name], batch) for name, tx in txs.items()}

    with jax.set_mesh(jax.make_mesh((8,), ("data",), (axes,))):
        placed = jax.tree.map(jax.device_put, params, SHARDED if sharded else REPLICATED)
        carries = {name: (placed, tx.init(placed)) for name, tx in txs.items()}
        before = jax.tree.map(lambda x: x.sharding, carries)
        directions = carries["revisit"][1].directions["hidden"]["kernel"]
        if sharded:
            assert directions.addressable_shards[0].data.shape == (GROUP, 4, 1)
        compiled = jax.jit(steps).lower(carries, jax.device_put(data[0], P("data"))).compile()
        for batch in data:
            carries = compiled(carries, jax.device_put(batch, P("data")))
        for x, sharding in zip(jax.tree.leaves(carries), jax.tree.leaves(before), strict=True):
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
        assert_close(jax.device_get(carries), jax.device_get(expected))
        if not sharded:
            assert set(collectives(compiled)) == {"all-reduce"}
