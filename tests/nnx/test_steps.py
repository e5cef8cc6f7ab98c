"""The NNX step is the plain Optax loop: one clean pass, and a method that asks for more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_eval_step, make_train_step
from tests.support.cases import CASES
from tests.support.nnx_models import (
    MODES,
    Mask,
    Noisy,
    Plain,
    PlainLoop,
    Remembering,
    Stacked,
    Tied,
    arrays,
    chain,
    examples,
    in_both_modes,
    in_float64,
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ONE_OF_A_KIND = [
    "sam",
    "penalized_gradient",
    "gradient_norm_penalty_2",
    "gam",
    "gam_accelerated",
]
a_case_of_each_kind = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ONE_OF_A_KIND], ids=lambda case: case.name
)
x64 = pytest.mark.usefixtures("x64")
STEPS = 20


def assert_close(actual, expected, tolerance=1e-9):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def trained(model, tx, batches, loss_fn=classification_loss, mode=(), **options):
    """The model, its optimizer and the last metrics after a step on each batch."""
    optimizer = Optimizer(model, tx, wrt=nnx.Param, **dict(mode))
    step = nnx.jit(make_train_step(loss_fn, **options), **dict(mode))
    for batch in batches:
        metrics = step(model, optimizer, batch)
    return model, optimizer, metrics


def noisy():
    return in_float64(Noisy(nnx.Rngs(0)))


def batches_in_float64():
    return [examples(seed=seed, dtype=jnp.float64) for seed in range(STEPS)]


@functools.cache
def clean_forward():
    """The loss of the noisy network on the first batch, and its state afterwards; jitted."""
    loop = PlainLoop(noisy(), optax.identity(), classification_loss)
    loss, rest = jax.jit(loop.clean_pass)(loop.params, loop.rest, batches_in_float64()[0])
    return loss, loop.rest_def.unflatten(rest)


@x64
@every_case
def test_twenty_steps_are_a_plain_optax_loops_with_exact_statistics_in_both_modes(case):
    """On a network with BatchNorm and dropout."""
    loss, rest = clean_forward()
    first, *others = batches_in_float64()
    loop = PlainLoop(noisy(), chain(case.make()), classification_loss).run(first, *others)
    for mode in MODES:
        model = noisy()
        optimizer = Optimizer(model, chain(case.make()), wrt=nnx.Param, **mode)
        step = nnx.jit(make_train_step(classification_loss), **mode)
        metrics = step(model, optimizer, first)
        assert metrics["loss"] == loss
        for kind in (nnx.BatchStat, nnx.RngState):
            assert_equal(arrays(model, kind), arrays(rest, kind))
        for batch in others:
            step(model, optimizer, batch)
        assert_close(arrays(model, nnx.Param), loop.params)
        assert_close(arrays(model, nnx.BatchStat), arrays(loop.state, nnx.BatchStat))
        assert_close(arrays(optimizer.opt_state), loop.opt_state)
        assert model.dropout.rngs.count[...] == STEPS
        assert (optimizer.step[...], optimizer.skipped[...]) == (STEPS, 0)


@x64
@in_both_modes
def test_without_a_method_it_is_flax_s_own_loop(mode):
    """Of ``nnx.value_and_grad`` and ``Optimizer.update``, on a network without dropout."""
    batches = batches_in_float64()
    model, _, _ = trained(in_float64(Plain(nnx.Rngs(0))), optax.adam(0.1), batches, mode=mode)
    expected = in_float64(Plain(nnx.Rngs(0)))
    optimizer = nnx.Optimizer(expected, optax.adam(0.1), wrt=nnx.Param)
    gradient = nnx.jit(nnx.grad(classification_loss, has_aux=True))
    for batch in batches:
        optimizer.update(expected, gradient(expected, batch)[0])
    assert_close(arrays(model), arrays(expected))


def mask_loss(model, x):
    """Its gradient is the sum of the masks, wherever the weights are."""
    out = model(x)
    return out.sum(), {"masks": (out / model.weight[...]).sum(0)}


@in_both_modes
@a_case_of_each_kind
def test_every_pass_of_a_step_has_the_same_dropout_mask_and_every_step_another(case, mode):
    """Else the method would see a gradient that changes with the weights."""
    model, tx = Mask(nnx.Rngs(0)), optax.chain(case.make(), optax.sgd(0.01))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param, **mode)
    step = nnx.jit(make_train_step(mask_loss), **mode)
    masks = []
    for count in range(3):
        assert model.dropout.rngs.count[...] == count
        before = model.weight[...].copy()
        masks.append(step(model, optimizer, jnp.ones((4, 1)))["masks"])
        assert_close(model.weight[...], before - 0.01 * masks[-1], 1e-6)
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


@in_both_modes
@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_each_part_of_a_batch_has_a_mask_of_its_own_in_every_pass(option, mode):
    """That of the random key into which the number of the part's first example is folded."""
    method = flatreg.sam(0.3) if option == "microbatches" else flatreg.per_shard(flatreg.sam(0.3))
    tx = optax.chain(method, optax.sgd(1.0))
    numbers = range(4) if option == "microbatches" else range(0, 8, 2)
    masks = []
    for number in numbers:
        part = Mask(nnx.Rngs(0))
        part.dropout.rngs.key[...] = jax.random.fold_in(part.dropout.rngs.key[...], number)
        masks.append(mask_loss(part, jnp.ones((2, 1)))[1]["masks"])
    assert len({mask.tobytes() for mask in masks}) == 4
    before = Mask(nnx.Rngs(0))
    model, _, metrics = trained(
        Mask(nnx.Rngs(0)), tx, [jnp.ones((8, 1))], mask_loss, mode, **{option: 4}
    )
    assert_close(metrics["masks"], sum(masks) / 4, 1e-6)
    assert_close(model.weight[...], before.weight[...] - sum(masks) / 4, 1e-6)
    assert_equal(arrays(model, nnx.RngKey), arrays(before, nnx.RngKey))
    assert model.dropout.rngs.count[...] == 1


@x64
@a_case_of_each_kind
def test_four_microbatches_train_like_one(case):
    batches = batches_in_float64()
    one, four = (
        trained(in_float64(Plain(nnx.Rngs(0))), chain(case.make()), batches, microbatches=k)[0]
        for k in (1, 4)
    )
    assert_close(arrays(four), arrays(one))


def gradient_of(model, batch):
    """∇L of a network without BatchNorm and dropout, at any parameters."""
    loop = PlainLoop(model, optax.identity(), classification_loss)
    gradient = jax.grad(loop.clean_pass, has_aux=True)
    return lambda params: gradient(params, loop.rest, batch)[0]


def sam_by_hand(params, uphill, oracle, rho):
    return oracle(optax.tree.add_scale(params, rho / optax.tree.norm(uphill), uphill))


@x64
@in_both_modes
def test_each_shard_has_its_own_perturbation(mode):
    x, labels = examples(dtype=jnp.float64)
    model = in_float64(Plain(nnx.Rngs(0)))
    params = arrays(model)
    oracles = [gradient_of(model, (x[i : i + 4], labels[i : i + 4])) for i in range(0, 16, 4)]
    directions = [sam_by_hand(params, oracle(params), oracle, 0.3) for oracle in oracles]
    mean = jax.tree.map(lambda *d: sum(d) / 4, *directions)
    tx = optax.chain(flatreg.per_shard(flatreg.sam(0.3)), optax.sgd(1.0))
    trained(model, tx, [(x, labels)], mode=mode, shards=4)
    assert_close(arrays(model), optax.tree.sub(params, mean))


@x64
@in_both_modes
def test_a_cheap_ascent_climbs_on_the_first_examples_and_reports_them(mode):
    x, labels = examples(dtype=jnp.float64)
    first = x[:4], labels[:4]
    model = in_float64(Plain(nnx.Rngs(0)))
    params, (loss, _) = arrays(model), classification_loss(model, first)
    uphill = gradient_of(model, first)(params)
    d = sam_by_hand(params, uphill, gradient_of(model, (x, labels)), 0.3)
    tx = optax.chain(flatreg.sam(0.3), optax.sgd(1.0))
    _, _, metrics = trained(model, tx, [(x, labels)], mode=mode, ascent_fraction=0.25)
    assert_close(arrays(model), optax.tree.sub(params, d))
    assert_close(metrics["loss"], loss)


@in_both_modes
def test_metrics_are_the_clean_passes_with_what_observe_saw(mode):
    batch, model = examples(), Plain(nnx.Rngs(0))
    params, (loss, own) = arrays(model), classification_loss(model, batch)
    g = gradient_of(model, batch)(params)
    tx = optax.chain(flatreg.observe(flatreg.sam(0.3)), optax.sgd(1.0))
    _, _, metrics = trained(model, tx, [batch], mode=mode)
    d = optax.tree.sub(params, arrays(model))
    norms = optax.tree.norm(g), optax.tree.norm(d)
    expected = {
        "loss": loss,
        "accuracy": own["accuracy"],
        "skipped": False,
        "grad_norm": norms[0],
        "direction_norm": norms[1],
        "perturbation_norm": 0.3,
        "cosine": optax.tree.vdot(g, d) / (norms[0] * norms[1]),
    }
    assert metrics.keys() == expected.keys()
    assert_close(metrics, expected, 1e-5)


@in_both_modes
@pytest.mark.parametrize("microbatches", [1, 4])
def test_any_variable_follows_the_clean_pass_once_a_step(microbatches, mode):
    """A count, and a cache with a type and a structure of its own; parts take the last one's."""
    x, labels = examples()
    model = Remembering(nnx.Rngs(0))
    constants = jax.tree.leaves(model.constants)
    trained(
        model, chain(flatreg.gam(0.1, 1.0)), [(x, labels)] * 3, mode=mode, microbatches=microbatches
    )
    assert model.calls[...] == 3
    assert model.cache["examples"] == 3 * 16 // microbatches
    last = x[-microbatches:].mean(0)  # of the microbatches' last examples, as it is floating
    assert_close(model.cache["last"], last, 1e-6)
    assert_equal(jax.tree.leaves(model.constants), constants)


@in_both_modes
def test_evaluation_leaves_the_model_as_it_is_even_in_training_mode(mode):
    batch, model = examples(), Noisy(nnx.Rngs(0))
    trained(model, chain(flatreg.sam()), [batch] * 3, mode=mode)
    before = arrays(model)
    eval_step = nnx.jit(make_eval_step(classification_loss), **mode)
    in_training_mode = eval_step(model, batch)
    assert_equal(arrays(model), before)
    model.eval()
    metrics = eval_step(model, batch)
    assert_equal(arrays(model), before)
    loss, own = classification_loss(model, batch)
    assert_close(metrics, {"loss": loss, **own}, 1e-6)
    assert metrics["loss"] != in_training_mode["loss"]


@x64
def test_shared_modules_train_as_one_in_graph_mode():
    batch = examples(dtype=jnp.float64)
    loop = PlainLoop(in_float64(Tied(nnx.Rngs(0))), chain(flatreg.sam(0.3)), classification_loss)
    model, _, _ = trained(in_float64(Tied(nnx.Rngs(0))), chain(flatreg.sam(0.3)), [batch] * 3)
    assert_close(arrays(model), loop.run(*[batch] * 3).params)
    assert model.first is model.second


def test_layers_that_are_stacked_and_scanned_train_in_microbatches():
    model = Stacked(nnx.Rngs(0))
    before = arrays(model, nnx.RngKey)
    trained(model, chain(flatreg.sam(0.1)), [examples()] * 2, microbatches=4)
    assert_equal(arrays(model, nnx.RngKey), before)
    np.testing.assert_array_equal(model.blocks.dropout.rngs.count[...], [2, 2, 2])


def test_a_step_needs_no_jit_and_a_model_may_be_a_tuple():
    """Of a network and its random streams, say."""
    model = Plain(nnx.Rngs(0)), nnx.Rngs(1)
    optimizer = nnx.Optimizer(model, chain(flatreg.sam(0.1)), wrt=nnx.Param)

    def loss_fn(model, x):
        network, rngs = model
        return jnp.mean(network(x + rngs.normal(x.shape)) ** 2)

    step = make_train_step(loss_fn)
    losses = [step(model, optimizer, jnp.zeros((4, 4)))["loss"] for _ in range(2)]
    assert losses[0] != losses[1]
    assert model[1].default.count[...] == 2
