"""Each mistake with Linen states and steps gets an error that names the call which mends it."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import errors
from linen_models import Mask, Noisy, Plain, chain, examples, state_of

import flatreg
from flatreg.linen import TrainState, classification, make_eval_step, make_train_step

SAM = flatreg.sam(0.05)
CHAIN = re.escape("optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1))")


def step(loss_fn, state, batch, **options):
    return jax.eval_shape(make_train_step(loss_fn, **options), state, batch)


def notes(raised):
    return "\n".join(raised.value.__notes__)


def plain_state(tx=None):
    return state_of(Plain(), tx or chain(SAM), examples()[0])


@pytest.mark.parametrize("tx", [flatreg.sam, 0.1, None], ids=["uncalled", "number", "none"])
def test_tx_that_is_no_transformation(tx):
    with pytest.raises(TypeError, match=f"must be an Optax transformation, got .*{CHAIN}"):
        state_of(Plain(), tx, examples()[0])


@pytest.mark.parametrize(
    "tx",
    [
        SAM,
        flatreg.observe(SAM),
        flatreg.every(2, SAM),
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
def test_a_method_without_an_optimizer_behind_it(tx):
    with pytest.raises(ValueError, match=f"would climb. Put the optimizer behind .*{CHAIN}"):
        plain_state(tx)


def test_chains_that_are_right_pass():
    for tx in (
        optax.sgd(0.1),
        chain(flatreg.observe(flatreg.every(2, SAM))),
        optax.chain(SAM, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        optax.apply_if_finite(chain(SAM), 3),
        optax.chain(optax.inject_hyperparams(flatreg.sam)(rho=0.1), optax.adam(0.1)),
    ):
        step(classification, plain_state(tx), examples())


def test_multisteps_around_a_method():
    tx = optax.MultiSteps(chain(SAM), every_k_schedule=4)
    with pytest.raises(ValueError, match=r"last microbatch.*make_train_step\(loss_fn, microbatch"):
        plain_state(tx)


def test_a_loss_that_is_not_scalar():
    def per_example(apply, batch, train):
        logits = apply(batch[0], train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    with pytest.raises(ValueError, match=r"must return a scalar, .* \(16,\).*return loss.mean\(\)"):
        step(per_example, plain_state(), examples())


@pytest.mark.parametrize(
    "out", [None, (jnp.ones(()), 1.0), jnp.ones((), jnp.int32), (jnp.ones(()),) * 3, {"loss": 1}]
)
def test_a_loss_that_returns_something_else(out):
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
def test_a_loss_of_another_signature(loss_fn, make):
    with pytest.raises(TypeError, match=r"must take \(apply, batch, train\).*def loss_fn\(apply"):
        make(loss_fn)


def test_a_loss_that_calls_the_model_itself():
    state = plain_state()

    def loss_fn(apply, batch, train):
        return jnp.mean(state.apply_fn(state.variables, batch[0], train=train))

    with pytest.raises(ValueError, match=r"never called apply.*logits = apply\(x, train=train\)"):
        step(loss_fn, state, examples())


@pytest.mark.parametrize("options", [{"shards": 3}, {"microbatches": 5}], ids=str)
def test_a_batch_that_does_not_divide(options):
    with pytest.raises(ValueError, match=r"cannot share a batch of 16 examples equally: choose"):
        step(classification, plain_state(), examples(), **options)


def test_shards_without_per_shard_and_the_other_way_round():
    with pytest.raises(TypeError, match="shards=m"):
        step(classification, plain_state(chain(flatreg.per_shard(SAM))), examples())


def test_options_out_of_range_are_refused_when_the_step_is_made():
    with pytest.raises(ValueError, match="microbatches must be a whole number"):
        make_train_step(classification, microbatches=0)
    with pytest.raises(ValueError, match="shards and ascent_fraction exclude each other"):
        make_train_step(classification, shards=2, ascent_fraction=0.1)


def test_batchnorm_without_statistics():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(batch_stats={})
    for attempt in (
        lambda: step(classification, state, batch),
        lambda: make_eval_step(classification)(state, batch),
    ):
        with pytest.raises(errors.ScopeCollectionNotFound, match="batch_stats") as raised:
            attempt()
        assert 'batch_stats=variables["batch_stats"]' in notes(raised)


def test_dropout_without_a_key():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(key=None)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification, state, batch)
    assert "key=jax.random.key(0)" in notes(raised)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification, state.replace(key=jax.random.key(0)), batch, rngs="noise")
    assert 'make_train_step(loss_fn, rngs=("dropout",))' in notes(raised)


def test_a_model_that_trains_in_evaluation():
    def always(apply, batch, train):
        return classification(lambda x, train: apply(x, train=True), batch, train)

    batch = examples()
    with pytest.raises(errors.FlaxError) as raised:
        make_eval_step(always)(state_of(Noisy(), chain(SAM), batch[0]), batch)
    assert "not train" in notes(raised)


def test_a_model_without_train():
    state = TrainState.init(nn.Dense(3), chain(SAM), jax.random.key(0), examples()[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'") as raised:
        step(classification, state, examples())
    assert "def loss_fn(apply, batch, train)" in notes(raised)


def gradient_penalty(apply, batch, train, **kwargs):
    """With the gradient by the inputs, in training mode."""
    slope = jax.grad(lambda x: apply(x, train=train, **kwargs).sum())(batch[0])
    loss, metrics = classification(apply, batch, train)
    return loss + jnp.mean(slope**2), metrics


def test_a_call_inside_of_another_transformation():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0])
    with pytest.raises(ValueError, match=r"cannot get: write apply\(x, train=train, mutable=False"):
        step(gradient_penalty, state, batch)
    step(functools.partial(gradient_penalty, mutable=False), state, batch)
    step(gradient_penalty, plain_state(), batch)  # no statistics, no trouble


class Sower(nn.Module):
    """Sows into a collection that is no constant of the state."""

    @nn.compact
    def __call__(self, x, train):
        self.sow("losses", "size", jnp.sum(x**2))
        return nn.Dense(3)(x)


def test_a_collection_that_grows_or_holds_examples():
    batch = examples()
    sower = state_of(Sower(), chain(SAM), batch[0])
    mask = state_of(Mask(), chain(SAM), batch[0])
    loss_fn = lambda apply, batch, train: apply(batch[0], train=train).mean()  # noqa: E731
    for state, options in ((sower, {}), (mask, {"microbatches": 2})):
        with pytest.raises(ValueError, match=r"changes the collection .*mutable='(losses|seen)'"):
            step(loss_fn, state, batch, **options)


def test_trainable_that_picks_nothing():
    with pytest.raises(ValueError, match=r"picks none of .*'bias'.*path.startswith\(\"head\"\)"):
        TrainState.init(
            nn.Dense(3), chain(SAM), jax.random.key(0), jnp.ones(2), trainable=lambda path: False
        )
