"""The Linen step is the plain Optax loop: one clean pass, and a method that asks for more."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import flatreg
from flatreg.linen import classification_loss, make_eval_step, make_train_step
from tests.support.cases import CASES
from tests.support.linen_models import (
    Noisy,
    Plain,
    assert_close,
    assert_equal,
    chain,
    clean_forward,
    examples,
    plain_step,
    state_of,
    trained,
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ONE_OF_A_KIND = [
    "sam",
    "gradient_norm_penalty_2",
    "gradient_regularization",
    "gam",
    "gam_accelerated",
]
a_case_of_each_kind = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ONE_OF_A_KIND], ids=lambda case: case.name
)
STEPS = 20


@pytest.mark.usefixtures("x64")
@every_case
def test_twenty_steps_with_one_trace_are_a_plain_optax_loops(case):
    """On a network with BatchNorm and dropout."""
    traces = []

    def loss_fn(apply, batch, train):
        traces.append(train)
        return classification_loss(apply, batch, train)

    batches = [examples(jnp.float64, seed=seed) for seed in range(STEPS)]
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


@pytest.mark.parametrize("name", ["sam", "penalized_gradient", "gam"])
def test_statistics_and_loss_are_one_clean_forwards_exactly(name):
    (case,) = [case for case in CASES if case.name == name]
    batch = examples()
    state = state_of(Noisy(), chain(case.make()), batch[0])
    new, metrics = jax.jit(make_train_step(classification_loss))(state, batch)
    assert np.any(new.batch_stats["BatchNorm_0"]["mean"] != 0)
    variables = state.replace(tx=None, opt_state=None)
    loss, batch_stats = jax.jit(clean_forward)(variables, state.params, batch)
    assert_equal((new.batch_stats, metrics["loss"]), (batch_stats, loss))


@every_case
def test_the_whole_step_lowers_to_tpu_and_cuda(case):
    batch = examples()
    state = state_of(Noisy(), chain(flatreg.observe(case.make())), batch[0])
    step = jax.jit(make_train_step(classification_loss), donate_argnums=0)
    exported = export.export(step, platforms=("tpu", "cuda"))(state, batch)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.usefixtures("x64")
@a_case_of_each_kind
def test_four_microbatches_train_like_one(case):
    batches = [examples(jnp.float64, seed=seed) for seed in range(STEPS)]
    state = state_of(Plain(), chain(case.make()), batches[0][0])
    one, four = (
        trained(jax.jit(make_train_step(classification_loss, microbatches=k)), state, batches)
        for k in (1, 4)
    )
    assert_close(four.params, one.params, 1e-9)


def test_four_microbatches_need_less_than_two_fifths_of_the_memory():
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


def sam_by_hand(params, uphill, oracle, rho):
    return oracle(optax.tree.add_scale(params, rho / optax.tree.norm(uphill), uphill))


@pytest.mark.usefixtures("x64")
def test_each_shard_has_its_own_perturbation():
    x, labels = examples(jnp.float64)
    state = state_of(Plain(), optax.chain(flatreg.per_shard(flatreg.sam(0.3)), optax.sgd(1.0)), x)
    new, _ = jax.jit(make_train_step(classification_loss, shards=4))(state, (x, labels))
    oracles = [plain_gradient(state, (x[i : i + 4], labels[i : i + 4])) for i in range(0, 16, 4)]
    directions = [
        sam_by_hand(state.params, oracle(state.params), oracle, 0.3) for oracle in oracles
    ]
    mean = jax.tree.map(lambda *d: sum(d) / 4, *directions)
    assert_close(new.params, optax.tree.sub(state.params, mean), 1e-9)


@pytest.mark.usefixtures("x64")
def test_a_cheap_ascent_climbs_on_the_first_examples_and_reports_them():
    x, labels = examples(jnp.float64)
    state = state_of(Plain(), optax.chain(flatreg.sam(0.3), optax.sgd(1.0)), x)
    step = jax.jit(make_train_step(classification_loss, ascent_fraction=0.25))
    new, metrics = step(state, (x, labels))
    uphill = plain_gradient(state, (x[:4], labels[:4]))(state.params)
    d = sam_by_hand(state.params, uphill, plain_gradient(state, (x, labels)), 0.3)
    assert_close(new.params, optax.tree.sub(state.params, d), 1e-9)
    first, _ = clean_forward(state, state.params, (x[:4], labels[:4]))
    assert_close(metrics["loss"], first, 1e-9)


def test_metrics_are_the_clean_passes_with_what_observe_saw():
    batch = examples()
    tx = optax.chain(flatreg.observe(flatreg.sam(0.3)), optax.sgd(1.0))
    state = state_of(Plain(), tx, batch[0])
    new, metrics = jax.jit(make_train_step(classification_loss))(state, batch)
    assert metrics.keys() == {
        "loss",
        "accuracy",
        "skipped",
        "grad_norm",
        "direction_norm",
        "perturbation_norm",
        "cosine",
    }
    g = plain_gradient(state, batch)(state.params)
    d = optax.tree.sub(state.params, new.params)
    norms = optax.tree.norm(g), optax.tree.norm(d)
    logits = state.apply_fn(state.variables, batch[0], train=False)
    expected = {
        "loss": clean_forward(state, state.params, batch)[0],
        "accuracy": np.mean(np.argmax(logits, axis=1) == batch[1]),
        "skipped": False,
        "grad_norm": norms[0],
        "direction_norm": norms[1],
        "perturbation_norm": 0.3,
        "cosine": optax.tree.vdot(g, d) / (norms[0] * norms[1]),
    }
    assert_close(metrics, expected, 1e-5)


def test_evaluation_moves_no_statistics_and_draws_no_mask():
    batch = examples()
    state = state_of(Noisy(), chain(flatreg.sam()), batch[0])
    state = trained(jax.jit(make_train_step(classification_loss)), state, [batch] * 3)
    metrics = jax.jit(make_eval_step(classification_loss))(state, batch)
    logits = state.apply_fn(state.variables, batch[0], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    assert_close(metrics["loss"], loss, 1e-6)
    assert metrics.keys() == {"loss", "accuracy"}
