"""An NNX step equals a plain Optax loop: one clean pass, and a method that requests gradients."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_eval_step, make_train_step
from tests.support.assertions import assert_leaves_close, assert_leaves_equal
from tests.support.cases import every_kind
from tests.support.networks.nnx_models import (
    MODES,
    Noisy,
    Plain,
    PlainLoop,
    Remembering,
    Tied,
    arrays,
    in_both_modes,
    in_float64,
    trained,
)
from tests.support.sam_by_hand import mean_sam_direction, metrics_of_sam, parts_of, sam_direction
from tests.support.steps import STEPS, chain, examples, float64_batches, only_cases, x64

one_case_of_each_kind = only_cases(
    "sam", "penalized_gradient", "gradient_norm_penalty_2", "gam", "gam_accelerated"
)


def noisy():
    return in_float64(Noisy(nnx.Rngs(0)))


@functools.cache
def clean_forward():
    """The loss of the noisy network on the first batch, and its state afterwards; jitted."""
    loop = PlainLoop(noisy(), optax.identity(), classification_loss)
    loss, rest = jax.jit(loop.clean_pass)(loop.params, loop.rest, float64_batches()[0])
    return loss, loop.rest_def.unflatten(rest)


@pytest.mark.nightly_except("sam")
@x64
@every_kind
def test_twenty_steps_equal_a_plain_optax_loop_in_both_modes(case):
    """The network has BatchNorm and dropout.

    After the first step, the loss, the statistics and the dropout counts are those of one clean
    forward pass, equal to the bit.
    """
    loss, rest = clean_forward()
    first, *others = float64_batches()
    loop = PlainLoop(noisy(), chain(case.make()), classification_loss).run(first, *others)
    for mode in MODES:
        model = noisy()
        optimizer = Optimizer(model, chain(case.make()), wrt=nnx.Param, **mode)
        step = nnx.jit(make_train_step(classification_loss), **mode)
        metrics = step(model, optimizer, first)
        assert metrics["loss"] == loss
        for kind in (nnx.BatchStat, nnx.RngState):
            assert_leaves_equal(arrays(model, kind), arrays(rest, kind))
        for batch in others:
            step(model, optimizer, batch)
        assert_leaves_close(arrays(model, nnx.Param), loop.params)
        assert_leaves_close(arrays(model, nnx.BatchStat), arrays(loop.state, nnx.BatchStat))
        assert_leaves_close(arrays(optimizer.opt_state), loop.opt_state)
        assert model.dropout.rngs.count[...] == STEPS
        assert (optimizer.step[...], optimizer.skipped[...]) == (STEPS, 0)


@pytest.mark.nightly_except("graph")
@x64
@in_both_modes
def test_without_a_method_a_step_equals_flax_s_own_loop(mode):
    """The loop consists of ``nnx.grad`` and ``Optimizer.update``, without dropout."""
    batches = float64_batches()
    model, _, _ = trained(in_float64(Plain(nnx.Rngs(0))), optax.adam(0.1), batches, mode=mode)
    expected = in_float64(Plain(nnx.Rngs(0)))
    optimizer = nnx.Optimizer(expected, optax.adam(0.1), wrt=nnx.Param)
    gradient = nnx.jit(nnx.grad(classification_loss, has_aux=True))
    for batch in batches:
        optimizer.update(expected, gradient(expected, batch)[0])
    assert_leaves_close(arrays(model), arrays(expected))


@pytest.mark.slow
@pytest.mark.nightly_except("gam")
@x64
@one_case_of_each_kind
def test_four_microbatches_train_like_one(case):
    batches = float64_batches()
    one, four = (
        trained(in_float64(Plain(nnx.Rngs(0))), chain(case.make()), batches, microbatches=k)[0]
        for k in (1, 4)
    )
    assert_leaves_close(arrays(four), arrays(one))


def gradient_of(model, batch):
    """∇L of a network without BatchNorm and dropout, at any parameters."""
    loop = PlainLoop(model, optax.identity(), classification_loss)
    gradient = jax.grad(loop.clean_pass, has_aux=True)
    return lambda params: gradient(params, loop.rest, batch)[0]


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@x64
@in_both_modes
def test_each_shard_has_its_own_perturbation(mode):
    batch = examples(jnp.float64)
    model = in_float64(Plain(nnx.Rngs(0)))
    params = arrays(model)
    oracles = [gradient_of(model, part) for part in parts_of(batch, 4)]
    mean = mean_sam_direction(params, oracles, 0.3)
    tx = optax.chain(flatreg.per_shard(flatreg.sam(0.3)), optax.sgd(1.0))
    trained(model, tx, [batch], mode=mode, shards=4)
    assert_leaves_close(arrays(model), optax.tree.sub(params, mean))


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@x64
@in_both_modes
def test_ascent_fraction_ascends_on_the_first_examples(mode):
    """The ascent direction comes from a quarter of the batch, the metrics from the second pass."""
    batch = examples(jnp.float64)
    first, *_ = parts_of(batch, 4)
    model = in_float64(Plain(nnx.Rngs(0)))
    params = arrays(model)
    uphill = gradient_of(model, first)(params)
    worst = optax.tree.add_scale(params, 0.3 / optax.tree.norm(uphill), uphill)
    at_worst = in_float64(Plain(nnx.Rngs(0)))
    nnx.update(at_worst, jax.tree.unflatten(jax.tree.structure(nnx.state(at_worst)), worst))
    loss, _ = classification_loss(at_worst, batch)
    d = sam_direction(params, uphill, gradient_of(model, batch), 0.3)
    tx = optax.chain(flatreg.sam(0.3), optax.sgd(1.0))
    _, _, metrics = trained(model, tx, [batch], mode=mode, ascent_fraction=0.25)
    assert_leaves_close(arrays(model), optax.tree.sub(params, d))
    assert_leaves_close(metrics["loss"], loss)


@pytest.mark.nightly_except("graph")
@in_both_modes
def test_metrics_come_from_the_clean_pass_and_from_observe(mode):
    batch, model = examples(), Plain(nnx.Rngs(0))
    params, (loss, own) = arrays(model), classification_loss(model, batch)
    g = gradient_of(model, batch)(params)
    tx = optax.chain(flatreg.observe(flatreg.sam(0.3)), optax.sgd(1.0))
    _, _, metrics = trained(model, tx, [batch], mode=mode)
    d = optax.tree.sub(params, arrays(model))
    expected = metrics_of_sam(loss, own["accuracy"], g, d, rho=0.3)
    assert metrics.keys() == expected.keys()
    assert_leaves_close(metrics, expected, 1e-5)


@pytest.mark.slow
@pytest.mark.nightly_except("4-*")
@in_both_modes
@pytest.mark.parametrize("microbatches", [1, 4])
def test_any_variable_is_updated_once_per_step(microbatches, mode):
    """The Variables are a count and a cache of an unknown type that holds a dict.

    With microbatches, integers come from the last one and floating-point arrays are averaged.
    """
    x, labels = examples()
    model = Remembering(nnx.Rngs(0))
    constants = jax.tree.leaves(model.constants)
    trained(
        model, chain(flatreg.gam(0.1, 1.0)), [(x, labels)] * 3, mode=mode, microbatches=microbatches
    )
    assert model.calls[...] == 3
    assert model.cache["examples"] == 3 * 16 // microbatches
    last = x[-microbatches:].mean(0)  # the mean of the microbatches' last examples
    assert_leaves_close(model.cache["last"], last, 1e-6)
    assert_leaves_equal(jax.tree.leaves(model.constants), constants)


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@in_both_modes
def test_evaluation_does_not_change_the_model(mode):
    """This holds in training mode too, in which BatchNorm and dropout change their Variables."""
    batch, model = examples(), Noisy(nnx.Rngs(0))
    trained(model, chain(flatreg.sam()), [batch] * 3, mode=mode)
    before = arrays(model)
    eval_step = nnx.jit(make_eval_step(classification_loss), **mode)
    in_training_mode = eval_step(model, batch)
    assert_leaves_equal(arrays(model), before)
    model.eval()
    metrics = eval_step(model, batch)
    assert_leaves_equal(arrays(model), before)
    loss, own = classification_loss(model, batch)
    assert_leaves_close(metrics, {"loss": loss, **own}, 1e-6)
    assert metrics["loss"] != in_training_mode["loss"]


@pytest.mark.slow
@x64
def test_shared_modules_train_as_one_in_graph_mode():
    batch = examples(jnp.float64)
    loop = PlainLoop(in_float64(Tied(nnx.Rngs(0))), chain(flatreg.sam(0.3)), classification_loss)
    model, _, _ = trained(in_float64(Tied(nnx.Rngs(0))), chain(flatreg.sam(0.3)), [batch] * 3)
    assert_leaves_close(arrays(model), loop.run(*[batch] * 3).params)
    assert model.first is model.second


def test_a_step_needs_no_jit_and_a_model_may_be_a_tuple():
    """The tuple holds a network and its random streams."""
    model = Plain(nnx.Rngs(0)), nnx.Rngs(1)
    optimizer = nnx.Optimizer(model, chain(flatreg.sam(0.1)), wrt=nnx.Param)

    def loss_fn(model, x):
        network, rngs = model
        return jnp.mean(network(x + rngs.normal(x.shape)) ** 2)

    step = make_train_step(loss_fn)
    losses = [step(model, optimizer, jnp.zeros((4, 4)))["loss"] for _ in range(2)]
    assert losses[0] != losses[1]
    assert model[1].default.count[...] == 2
