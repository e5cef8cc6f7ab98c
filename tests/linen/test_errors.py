"""Argument validation of Linen states and steps. Each error shows the corrected call."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import errors
from flax.training import train_state

import flatreg
from flatreg import lipschitz
from flatreg.linen import TrainState, classification_loss, make_eval_step, make_train_step
from tests.support.networks.linen_models import Mask, Noisy, Plain, state_of
from tests.support.steps import chain, examples

SAM, CLIP = flatreg.sam(0.05), optax.clip(1.0)
CHAIN = re.escape("optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1))")


def step(loss_fn, state, batch, **options):
    return jax.eval_shape(make_train_step(loss_fn, **options), state, batch)


def notes(raised):
    return "\n".join(raised.value.__notes__)


def plain_state(tx=None):
    return state_of(Plain(), tx or chain(SAM), examples()[0])


@pytest.mark.parametrize("tx", [flatreg.sam, 0.1, None], ids=["uncalled", "number", "none"])
def test_tx_must_be_a_transformation(tx):
    with pytest.raises(TypeError, match=f"must be an Optax transformation, got .*{CHAIN}"):
        state_of(Plain(), tx, examples()[0])


@pytest.mark.parametrize(
    "tx",
    [
        SAM,
        flatreg.observe(SAM),
        flatreg.every(SAM, 2),
        flatreg.combine(SAM, flatreg.gam(0.1, 1.0)),
        flatreg.per_shard(SAM),
        optax.chain(optax.sgd(0.1), SAM),
        optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1), SAM)),
        optax.named_chain(("optimizer", optax.sgd(0.1)), ("method", SAM)),
        optax.inject_hyperparams(flatreg.sam)(rho=0.1),
    ],
    ids=[
        *("bare", "observed", "every", "combined", "per_shard", "behind", "nested", "named"),
        "injected",
    ],
)
def test_a_chain_must_not_end_in_a_method(tx):
    with pytest.raises(ValueError, match=f"increase the loss. Put the optimizer after .*{CHAIN}"):
        plain_state(tx)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.adamw(0.1), SAM, optax.ema(0.9)),
        optax.chain(optax.chain(optax.clip(1.0), optax.lion(0.1)), flatreg.every(SAM, 2), CLIP),
        optax.chain(optax.apply_if_finite(optax.rmsprop(0.1), 3), flatreg.observe(SAM), CLIP),
        optax.chain(optax.inject_hyperparams(optax.adam)(0.1), flatreg.combine(SAM, SAM), CLIP),
        optax.named_chain(("optimizer", optax.adam(0.1)), ("method", SAM), ("clip", CLIP)),
        optax.apply_if_finite(optax.chain(optax.contrib.muon(0.1), SAM, CLIP), 3),
    ],
    ids=["ema", "nested", "if_finite", "injected", "named", "partition"],
)
def test_an_optimizer_must_not_precede_a_method(tx):
    with pytest.raises(ValueError, match=f"an optimizer before a method.*{CHAIN}"):
        plain_state(tx)


def ascent_by_adam():
    """A method whose own state is that of an optimizer."""
    adam = optax.scale_by_adam()

    def direction(grad_fn, params, g, state):
        uphill, state = adam.update(g, state)
        return grad_fn(optax.tree.add_scale(params, 0.01, uphill)), state

    return flatreg.from_stateful_direction(adam.init, direction)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1),
        chain(flatreg.observe(flatreg.every(SAM, 2))),
        optax.chain(SAM, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        optax.apply_if_finite(chain(SAM), 3),
        optax.chain(optax.inject_hyperparams(flatreg.sam)(rho=0.1), optax.adam(0.1)),
        optax.chain(CLIP, optax.zero_nans(), optax.add_decayed_weights(1e-3), chain(SAM)),
        optax.chain(optax.ema(0.9), optax.trace(0.9), flatreg.sam(lambda count: 0.1), CLIP),
        optax.named_chain(("method", SAM), ("optimizer", optax.adam(0.1))),
        optax.chain(ascent_by_adam(), SAM, optax.adam(0.1)),
        optax.chain(flatreg.combine(SAM, ascent_by_adam()), optax.adam(lambda count: 0.1)),
        optax.chain(
            flatreg.combine(SAM, lipschitz.orthogonality_penalty(0.1)),
            lipschitz.orthogonality_penalty(0.1),
            SAM,
            optax.partition({"all": optax.adam(0.1)}, lambda params: "all"),
            flatreg.every(lipschitz.project_spectral_norm(1.0), 2),
        ),
        optax.chain(SAM, optax.adamw(0.1), optax.contrib.reduce_on_plateau()),
    ],
    ids=[
        *("sgd", "every", "accumulated", "if_finite", "injected", "gradient", "averaged", "named"),
        *("stateful", "combined", "penalties", "plateau"),
    ],
)
def test_a_correct_chain_is_accepted(tx):
    step(classification_loss, plain_state(tx), examples())


def test_a_batch_must_be_a_pair():
    x, labels = examples()
    for batch in ({"image": x, "label": labels}, x, (x, labels, x)):
        with pytest.raises(TypeError, match=r"batch = \(x, labels\).*batch\[\"image\"\]"):
            step(classification_loss, plain_state(), batch)


def test_the_state_comes_first_and_is_from_flatreg():
    state, batch = plain_state(), examples()
    flaxs = train_state.TrainState.create(
        apply_fn=state.apply_fn, params=state.params, tx=optax.sgd(0.1)
    )
    for run in (make_train_step(classification_loss), make_eval_step(classification_loss)):
        for arguments in ((batch, state), (flaxs, batch)):
            with pytest.raises(TypeError, match=r"TrainState\.init\(model.*_step\(state, batch\)"):
                run(*arguments)


def test_multisteps_around_a_method_is_refused():
    tx = optax.MultiSteps(chain(SAM), every_k_schedule=4)
    with pytest.raises(ValueError, match=r"last microbatch.*make_train_step\(loss_fn, microbatch"):
        plain_state(tx)


def test_two_observations_are_refused():
    tx = chain(flatreg.combine(flatreg.observe(SAM), flatreg.observe(flatreg.gam(0.1, 1.0))))
    state = state_of(Plain(), tx, examples()[0])
    with pytest.raises(ValueError, match=r"observe\(flatreg\.combine"):
        make_train_step(classification_loss)(state, examples())


def test_the_loss_must_be_a_scalar():
    def per_example(apply, batch, train):
        logits = apply(batch[0], train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    with pytest.raises(ValueError, match=r"must return a scalar, .* \(16,\).*return loss.mean\(\)"):
        step(per_example, plain_state(), examples())


@pytest.mark.parametrize(
    "out", [None, (jnp.ones(()), 1.0), jnp.ones((), jnp.int32), (jnp.ones(()),) * 3, {"loss": 1}]
)
def test_the_loss_must_return_a_number_and_a_dict(out):
    def loss_fn(apply, batch, train):
        apply(batch[0], train=train)
        return out

    with pytest.raises(TypeError, match=r"loss_fn must return .*return loss, {\"accuracy\""):
        step(loss_fn, plain_state(), examples())


@pytest.mark.parametrize(
    "loss_fn",
    [lambda params, batch: 0.0, lambda apply, batch, *, train: 0.0, "loss"],
    ids=["params", "keyword", "no_function"],
)
@pytest.mark.parametrize("make", [make_train_step, make_eval_step])
def test_the_loss_must_take_three_arguments(loss_fn, make):
    with pytest.raises(TypeError, match=r"must take \(apply, batch, train\).*def loss_fn\(apply"):
        make(loss_fn)


def test_the_loss_must_call_apply_and_not_the_model():
    state = plain_state()

    def loss_fn(apply, batch, train):
        return jnp.mean(state.apply_fn(state.variables, batch[0], train=train))

    with pytest.raises(ValueError, match=r"never called apply.*logits = apply\(x, train=train\)"):
        step(loss_fn, state, examples())


@pytest.mark.parametrize("options", [{"shards": 3}, {"microbatches": 5}], ids=str)
def test_the_parts_must_divide_the_batch(options):
    with pytest.raises(ValueError, match=r"batch of 16 examples cannot be split equally.*choose"):
        step(classification_loss, plain_state(), examples(), **options)


def test_per_shard_needs_the_option_shards():
    with pytest.raises(TypeError, match="shards=m"):
        step(classification_loss, plain_state(chain(flatreg.per_shard(SAM))), examples())


def test_options_are_checked_before_the_first_step():
    with pytest.raises(ValueError, match="microbatches must be a whole number"):
        make_train_step(classification_loss, microbatches=0)
    with pytest.raises(ValueError, match="shards and ascent_fraction cannot be used together"):
        make_train_step(classification_loss, shards=2, ascent_fraction=0.1)


def test_batchnorm_needs_statistics_in_the_state():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(batch_stats={})
    for attempt in (
        lambda: step(classification_loss, state, batch),
        lambda: make_eval_step(classification_loss)(state, batch),
    ):
        with pytest.raises(errors.ScopeCollectionNotFound, match="batch_stats") as raised:
            attempt()
        assert 'batch_stats=variables["batch_stats"]' in notes(raised)


def test_dropout_needs_a_key_in_the_state():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(key=None)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification_loss, state, batch)
    assert "key=jax.random.key(0)" in notes(raised)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification_loss, state.replace(key=jax.random.key(0)), batch, rngs="noise")
    assert 'make_train_step(loss_fn, rngs=("dropout",))' in notes(raised)


def test_a_model_must_not_train_in_evaluation():
    def always(apply, batch, train):
        return classification_loss(lambda x, train: apply(x, train=True), batch, train)

    batch = examples()
    with pytest.raises(errors.FlaxError) as raised:
        make_eval_step(always)(state_of(Noisy(), chain(SAM), batch[0]), batch)
    assert "not train" in notes(raised)


def test_classification_loss_needs_a_model_with_train():
    state = TrainState.init(nn.Dense(3), chain(SAM), jax.random.key(0), examples()[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'") as raised:
        step(classification_loss, state, examples())
    assert "def loss_fn(apply, batch, train)" in notes(raised)


def gradient_penalty(apply, batch, train, **kwargs):
    """A penalty on the gradient with respect to the inputs, in training mode."""
    slope = jax.grad(lambda x: apply(x, train=train, **kwargs).sum())(batch[0])
    loss, metrics = classification_loss(apply, batch, train)
    return loss + jnp.mean(slope**2), metrics


def test_statistics_cannot_leave_another_transformation():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0])
    with pytest.raises(
        ValueError, match=r"cannot leave it: write apply\(x, train=train, mutable=False"
    ):
        step(gradient_penalty, state, batch)
    step(functools.partial(gradient_penalty, mutable=False), state, batch)
    step(gradient_penalty, plain_state(), batch)  # a model without statistics is allowed


class Sower(nn.Module):
    """A model that sows values into a collection of the state."""

    @nn.compact
    def __call__(self, x, train):
        self.sow("losses", "size", jnp.sum(x**2))
        return nn.Dense(3)(x)


def test_a_collection_must_not_grow_or_hold_examples():
    batch = examples()
    sower = state_of(Sower(), chain(SAM), batch[0])
    mask = state_of(Mask(), chain(SAM), batch[0])
    loss_fn = lambda apply, batch, train: apply(batch[0], train=train).mean()  # noqa: E731
    for state, options in ((sower, {}), (mask, {"microbatches": 2})):
        with pytest.raises(ValueError, match=r"changes the collection .*mutable='(losses|seen)'"):
            step(loss_fn, state, batch, **options)


def test_trainable_must_select_a_parameter():
    with pytest.raises(
        ValueError, match=r"selects no parameter of .*'bias'.*path.startswith\(\"head\"\)"
    ):
        TrainState.init(
            nn.Dense(3), chain(SAM), jax.random.key(0), jnp.ones(2), trainable=lambda path: False
        )
