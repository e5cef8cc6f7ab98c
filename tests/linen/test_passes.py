"""All passes of a Linen step have the same random keys; only the clean pass updates the state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from flatreg.linen import classification_loss, make_eval_step, make_train_step
from tests.support.assertions import assert_close, assert_equal
from tests.support.networks.linen_models import (
    Mask,
    Noisy,
    clean_forward,
    state_of,
    step_keys,
    trained,
)
from tests.support.steps import chain, examples

KINDS = {
    "sam": flatreg.sam(0.3),
    "penalized_gradient": flatreg.penalized_gradient(0.3),
    "gam": flatreg.gam(0.3, 0.5),
    "gam_accelerated": flatreg.gam_accelerated(),
}


def linear(apply, batch, train):
    """The mean of the masks. Its gradient is the mean mask, at any weights."""
    return apply(batch, train=train).mean(axis=0).sum()


@pytest.mark.parametrize("name", KINDS)
def test_perturbed_passes_share_the_mask_of_the_clean_pass(name):
    x = jnp.ones((16, 4))
    state = state_of(Mask(), optax.chain(KINDS[name], optax.sgd(1.0)), x)
    step, masks = jax.jit(make_train_step(linear)), []
    for _ in range(2):
        new, _ = step(state, x)
        masks.append(new.collections["seen"]["mask"])
        direction = state.params["weight"] - new.params["weight"]
        np.testing.assert_allclose(direction, masks[-1].mean(axis=0), rtol=1e-5)
        state = new
    assert (masks[0] != masks[1]).any()


def test_passes_of_one_step_agree_bitwise():
    """A method that subtracts the gradients of perturbed passes does not move the weights."""

    def difference(grad_fn, params, g):
        here, there = (grad_fn(optax.tree.add_scale(params, h, g)) for h in (0.5, -0.5))
        return jax.tree.map(lambda x, y, z: abs(x - y) + abs(x - z), g, here, there)

    x = jnp.ones((16, 4))
    tx = optax.chain(flatreg.from_direction(difference), optax.sgd(1.0))
    for options in ({}, {"microbatches": 4}, {"shards": 2}):
        state = state_of(Mask(remember=False), tx, x)
        new, _ = jax.jit(make_train_step(linear, **options))(state, x)
        np.testing.assert_array_equal(new.params["weight"], state.params["weight"])


def test_a_second_call_has_its_own_mask_and_new_statistics():
    """It starts from the statistics that the first call in the same loss left."""
    x, _ = examples()
    state = state_of(Noisy(), chain(flatreg.sam(0.3)), x)

    def twice(apply, batch, train):
        first, second = apply(batch, train=train), apply(2 * batch, train=train)
        return jnp.mean((first - second) ** 2), {"first": first, "second": second}

    new, metrics = jax.jit(make_train_step(twice))(state, x)
    batch_stats = state.batch_stats
    for call, name in enumerate(("first", "second")):
        logits, updated = state.apply_fn(
            {"params": state.params, "batch_stats": batch_stats},
            (call + 1) * x,
            train=True,
            rngs=step_keys(state, call=call),
            mutable=["batch_stats"],
        )
        batch_stats = updated["batch_stats"]
        assert_close(metrics[name], logits, 1e-5)
    assert_close(new.batch_stats, batch_stats, 1e-6)


@pytest.mark.slow
def test_a_call_that_is_not_mutable_keeps_the_statistics():
    batch = examples()
    state = state_of(Noisy(), chain(flatreg.sam(0.3)), batch[0])

    def with_an_aside(apply, batch, train):
        loss, metrics = classification_loss(apply, batch, train)
        aside = apply(7 * batch[0], train=train, mutable=False)
        return loss + 0 * aside.sum(), metrics

    once, twice = (
        trained(jax.jit(make_train_step(loss_fn)), state, [batch])
        for loss_fn in (classification_loss, with_an_aside)
    )
    assert_close(once.batch_stats, twice.batch_stats, 1e-6)


@pytest.mark.slow
@pytest.mark.nightly_except("shards")
@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_statistics_of_microbatches_and_shards_are_averaged(option):
    """Each part has its own mask: its number is folded into the key of the step."""
    x, labels = examples()
    method = flatreg.sam(0.3) if option == "microbatches" else flatreg.per_shard(flatreg.sam(0.3))
    state = state_of(Noisy(), chain(method), x)
    new, metrics = jax.jit(make_train_step(classification_loss, **{option: 4}))(state, (x, labels))
    order = np.arange(16).reshape(4, 4)
    parts = order.T if option == "microbatches" else order
    of_step = jax.random.fold_in(state.key, state.step)
    outs = [
        clean_forward(state.replace(key=of_step, step=i), state.params, (x[part], labels[part]))
        for i, part in enumerate(parts)
    ]
    mean = jax.tree.map(lambda *xs: sum(xs) / 4, *outs)
    assert_close((metrics["loss"], new.batch_stats), mean, 1e-6)


class Both(nn.Module):
    """A model with two inputs, two random streams, a counter and a sown value."""

    @nn.compact
    def __call__(self, x, z, train):
        count = self.variable("counter", "calls", lambda: jnp.zeros((), jnp.int32))
        x = nn.Dense(3)(jnp.concatenate([x, z], axis=1))
        self.sow("intermediates", "hidden", x)
        if train:
            count.value += 1
            x += jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dropout(0.5, deterministic=not train)(x)


def squares(apply, batch, train):
    x, z = batch["x"], batch["z"]
    out, sown = apply(x, z, train=train, mutable="intermediates")
    (hidden,) = sown["intermediates"]["hidden"]
    return jnp.mean(out**2) + jnp.mean(hidden**2), {"out": out}


def both():
    x = jax.random.normal(jax.random.key(3), (8, 4))
    batch = {"x": x[:, :1], "z": x[:, 1:]}
    variables = Both().init(jax.random.key(4), *batch.values(), train=False)
    state = flatreg.linen.TrainState.create(
        apply_fn=Both().apply,
        params=variables["params"],
        tx=chain(flatreg.sam(0.3)),
        collections={"counter": variables["counter"]},
        key=jax.random.key(5),
    )
    return state, batch


def test_a_model_may_have_several_inputs_rngs_and_collections():
    state, batch = both()
    step = jax.jit(make_train_step(squares, rngs=("dropout", "noise")))
    for t in range(3):
        expected = state.apply_fn(
            state.variables,
            *batch.values(),
            train=True,
            rngs=step_keys(state, ("dropout", "noise")),
            mutable=["counter"],
        )[0]
        state, metrics = step(state, batch)
        assert_close(metrics["out"], expected, 1e-5)
        assert state.collections == {"counter": {"calls": t + 1}}
    evaluated = jax.jit(make_eval_step(squares))(state, batch)
    expected = state.apply_fn(state.variables, *batch.values(), train=False)
    assert_close(evaluated["out"], expected, 1e-5)


def test_a_loss_may_penalize_the_weights():
    x, labels = examples()
    state = state_of(Noisy(), optax.sgd(0.1), x)

    def penalty(apply, batch, train):
        return optax.tree.norm(apply.variables["params"], squared=True) / 2

    new, _ = jax.jit(make_train_step(penalty))(state, (x, labels))
    assert_close(new.params, optax.tree.scale(0.9, state.params), 1e-6)


@pytest.mark.slow
def test_raw_keys_work_like_typed_keys():
    batch = examples()
    typed = state_of(Noisy(), chain(flatreg.sam()), batch[0])
    raw = typed.replace(key=jax.random.key_data(typed.key))
    step = jax.jit(make_train_step(classification_loss))
    assert_equal(trained(step, typed, [batch]).params, trained(step, raw, [batch]).params)
