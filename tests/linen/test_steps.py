"""A Linen step equals a plain Optax loop: one clean pass, and a method that requests gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import flatreg
from flatreg.linen import classification_loss, make_eval_step, make_train_step
from tests.support.assertions import assert_close, assert_equal
from tests.support.cases import every_kind
from tests.support.networks.linen_models import (
    Noisy,
    Plain,
    clean_forward,
    plain_step,
    state_of,
    trained,
)
from tests.support.sam_by_hand import mean_sam_direction, metrics_of_sam, parts_of, sam_direction
from tests.support.steps import STEPS, chain, examples, float64_batches, only_cases, x64


@pytest.mark.nightly_except("sam")
@x64
@every_kind
def test_twenty_steps_equal_a_plain_loop_with_one_trace(case):
    """The network has BatchNorm and dropout; parameters, states and statistics all agree."""
    traces = []

    def loss_fn(apply, batch, train):
        traces.append(train)
        return classification_loss(apply, batch, train)

    batches = float64_batches()
    step = jax.jit(make_train_step(loss_fn))
    state = state_of(Noisy(), chain(case.make()), batches[0][0])
    trained(step, state, batches[:1])
    passes = len(traces)
    actual = trained(step, state, batches)
    assert len(traces) == passes
    expected = trained(jax.jit(plain_step), state, batches)
    assert_close(actual.params, expected.params, 1e-9)
    assert_close(actual.opt_state, expected.opt_state, 1e-9)
    assert_close(actual.batch_stats, expected.batch_stats, 1e-9)
    assert (actual.step, actual.skipped) == (STEPS, 0)


@pytest.mark.nightly_except("gam")
@only_cases("sam", "penalized_gradient", "gam")
def test_statistics_and_loss_are_those_of_one_clean_forward(case):
    """They are equal to the bit, so no perturbed pass contributes to them."""
    batch = examples()
    state = state_of(Noisy(), chain(case.make()), batch[0])
    new, metrics = jax.jit(make_train_step(classification_loss))(state, batch)
    assert np.any(new.batch_stats["BatchNorm_0"]["mean"] != 0)
    variables = state.replace(tx=None, opt_state=None)
    loss, batch_stats = jax.jit(clean_forward)(variables, state.params, batch)
    assert_equal((new.batch_stats, metrics["loss"]), (batch_stats, loss))


@pytest.mark.nightly_except("sam", "gam")
@every_kind
def test_the_whole_step_compiles_for_tpu_and_cuda(case):
    batch = examples()
    state = state_of(Noisy(), chain(flatreg.observe(case.make())), batch[0])
    step = jax.jit(make_train_step(classification_loss), donate_argnums=0)
    exported = export.export(step, platforms=("tpu", "cuda"))(state, batch)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.slow
@pytest.mark.nightly_except("gam")
@x64
@only_cases("sam", "gradient_norm_penalty_2", "gradient_regularization", "gam", "gam_accelerated")
def test_four_microbatches_train_like_one(case):
    batches = float64_batches()
    state = state_of(Plain(), chain(case.make()), batches[0][0])
    one, four = (
        trained(jax.jit(make_train_step(classification_loss, microbatches=k)), state, batches)
        for k in (1, 4)
    )
    assert_close(four.params, one.params, 1e-9)


@pytest.mark.slow
def test_four_microbatches_need_less_than_two_fifths_of_memory():
    batch = jax.eval_shape(lambda: examples(count=8192))
    state = state_of(Plain(width=64), chain(flatreg.sam()), jnp.ones((1, 4)))

    def temporary_bytes(microbatches):
        step = jax.jit(make_train_step(classification_loss, microbatches=microbatches))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.4 * temporary_bytes(1)


def plain_gradient(state, batch):
    """∇L of a network without BatchNorm and dropout, as a function of the parameters."""
    gradient = jax.jit(jax.grad(clean_forward, argnums=1, has_aux=True))
    return lambda params: gradient(state, params, batch)[0]


@pytest.mark.slow
@x64
def test_each_shard_has_its_own_perturbation():
    batch = examples(jnp.float64)
    tx = optax.chain(flatreg.per_shard(flatreg.sam(0.3)), optax.sgd(1.0))
    state = state_of(Plain(), tx, batch[0])
    new, _ = jax.jit(make_train_step(classification_loss, shards=4))(state, batch)
    oracles = [plain_gradient(state, part) for part in parts_of(batch, 4)]
    mean = mean_sam_direction(state.params, oracles, 0.3)
    assert_close(new.params, optax.tree.sub(state.params, mean), 1e-9)


@x64
def test_ascent_fraction_ascends_on_the_first_examples():
    """The ascent direction comes from a quarter of the batch, the metrics from the second pass."""
    batch = examples(jnp.float64)
    first, *_ = parts_of(batch, 4)
    state = state_of(Plain(), optax.chain(flatreg.sam(0.3), optax.sgd(1.0)), batch[0])
    step = jax.jit(make_train_step(classification_loss, ascent_fraction=0.25))
    new, metrics = step(state, batch)
    uphill = plain_gradient(state, first)(state.params)
    d = sam_direction(state.params, uphill, plain_gradient(state, batch), 0.3)
    assert_close(new.params, optax.tree.sub(state.params, d), 1e-9)
    worst = optax.tree.add_scale(state.params, 0.3 / optax.tree.norm(uphill), uphill)
    loss, _ = clean_forward(state, worst, batch)
    assert_close(metrics["loss"], loss, 1e-9)


@pytest.mark.nightly_except("0.25")
@x64
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_statistics_come_from_the_pass_with_the_whole_batch(fraction):
    """Below one it is the perturbed pass: the clean one sees only the first examples."""
    x, labels = batch = examples(jnp.float64)
    state = state_of(Noisy(), optax.chain(flatreg.sam(0.3), optax.sgd(1.0)), x)
    step = jax.jit(make_train_step(classification_loss, ascent_fraction=fraction))
    new, metrics = step(state, batch)
    first = x[: int(16 * fraction)], labels[: int(16 * fraction)]
    g = jax.grad(clean_forward, argnums=1, has_aux=True)(state, state.params, first)[0]
    worst = optax.tree.add_scale(state.params, 0.3 / optax.tree.norm(g), g)
    seen_at = state.params if fraction == 1 else worst
    loss, batch_stats = clean_forward(state, seen_at, batch)
    assert_close(new.batch_stats, batch_stats, 1e-9)
    assert_close(metrics["loss"], loss, 1e-9)
    skipped, metrics = step(state, (x.at[-1].set(jnp.nan), labels))
    assert metrics["skipped"]
    assert_equal(skipped.batch_stats, state.batch_stats)


@pytest.mark.parametrize("tx", [optax.identity(), flatreg.every(flatreg.sam(0.3), 2)])
def test_without_a_visible_second_pass_the_first_one_is_reported(tx):
    batch = examples()
    first, *_ = parts_of(batch, 4)
    state = state_of(Plain(), optax.chain(tx, optax.sgd(1.0)), batch[0])
    step = jax.jit(make_train_step(classification_loss, ascent_fraction=0.25))
    _, metrics = step(state, batch)
    assert_close(metrics["loss"], clean_forward(state, state.params, first)[0], 1e-5)


def test_metrics_come_from_the_clean_pass_and_from_observe():
    batch = examples()
    tx = optax.chain(flatreg.observe(flatreg.sam(0.3)), optax.sgd(1.0))
    state = state_of(Plain(), tx, batch[0])
    new, metrics = jax.jit(make_train_step(classification_loss))(state, batch)
    g = plain_gradient(state, batch)(state.params)
    d = optax.tree.sub(state.params, new.params)
    logits = state.apply_fn(state.variables, batch[0], train=False)
    accuracy = np.mean(np.argmax(logits, axis=1) == batch[1])
    loss, _ = clean_forward(state, state.params, batch)
    expected = metrics_of_sam(loss, accuracy, g, d, rho=0.3)
    assert metrics.keys() == expected.keys()
    assert_close(metrics, expected, 1e-5)


def test_evaluation_updates_no_statistics_and_draws_no_mask():
    batch = examples()
    state = state_of(Noisy(), chain(flatreg.sam()), batch[0])
    state = trained(jax.jit(make_train_step(classification_loss)), state, [batch] * 3)
    metrics = jax.jit(make_eval_step(classification_loss))(state, batch)
    logits = state.apply_fn(state.variables, batch[0], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    assert_close(metrics["loss"], loss, 1e-6)
    assert metrics.keys() == {"loss", "accuracy"}
