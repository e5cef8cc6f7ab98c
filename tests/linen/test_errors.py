"""Each mistake with Linen states and steps gets an error that names the call which mends it."""

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
from tests.support.linen_models import Mask, Noisy, Plain, chain, examples, state_of

SAM, CLIP = flatreg.sam(0.05), optax.clip(1.0)
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
def test_a_method_without_an_optimizer_behind_it(tx):
    with pytest.raises(ValueError, match=f"would climb. Put the optimizer behind .*{CHAIN}"):
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
def test_an_optimizer_before_a_method(tx):
    with pytest.raises(ValueError, match=f"an optimizer before a method.*{CHAIN}"):
        plain_state(tx)


def ascent_by_adam():
    """A method whose own state is an optimizer's."""
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
def test_a_chain_that_is_right(tx):
    step(classification_loss, plain_state(tx), examples())


def test_a_batch_that_is_no_pair():
    x, labels = examples()
    for batch in ({"image": x, "label": labels}, x, (x, labels, x)):
        with pytest.raises(TypeError, match=r"batch = \(x, labels\).*batch\[\"image\"\]"):
            step(classification_loss, plain_state(), batch)


def test_the_state_comes_first_and_is_flatregs():
    state, batch = plain_state(), examples()
    flaxs = train_state.TrainState.create(
        apply_fn=state.apply_fn, params=state.params, tx=optax.sgd(0.1)
    )
    for run in (make_train_step(classification_loss), make_eval_step(classification_loss)):
        for arguments in ((batch, state), (flaxs, batch)):
            with pytest.raises(TypeError, match=r"TrainState\.init\(model.*_step\(state, batch\)"):
                run(*arguments)


def test_multisteps_around_a_method():
    tx = optax.MultiSteps(chain(SAM), every_k_schedule=4)
    with pytest.raises(ValueError, match=r"last microbatch.*make_train_step\(loss_fn, microbatch"):
        plain_state(tx)


def test_two_observations():
    tx = chain(flatreg.combine(flatreg.observe(SAM), flatreg.observe(flatreg.gam(0.1, 1.0))))
    state = state_of(Plain(), tx, examples()[0])
    with pytest.raises(ValueError, match=r"observe\(flatreg\.combine"):
        make_train_step(classification_loss)(state, examples())


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
        step(classification_loss, plain_state(), examples(), **options)


def test_shards_without_per_shard_and_the_other_way_round():
    with pytest.raises(TypeError, match="shards=m"):
        step(classification_loss, plain_state(chain(flatreg.per_shard(SAM))), examples())


def test_options_out_of_range_are_refused_when_the_step_is_made():
    with pytest.raises(ValueError, match="microbatches must be a whole number"):
        make_train_step(classification_loss, microbatches=0)
    with pytest.raises(ValueError, match="shards and ascent_fraction exclude each other"):
        make_train_step(classification_loss, shards=2, ascent_fraction=0.1)


def test_batchnorm_without_statistics():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(batch_stats={})
    for attempt in (
        lambda: step(classification_loss, state, batch),
        lambda: make_eval_step(classification_loss)(state, batch),
    ):
        with pytest.raises(errors.ScopeCollectionNotFound, match="batch_stats") as raised:
            attempt()
        assert 'batch_stats=variables["batch_stats"]' in notes(raised)


def test_dropout_without_a_key():
    batch = examples()
    state = state_of(Noisy(), chain(SAM), batch[0]).replace(key=None)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification_loss, state, batch)
    assert "key=jax.random.key(0)" in notes(raised)
    with pytest.raises(errors.InvalidRngError) as raised:
        step(classification_loss, state.replace(key=jax.random.key(0)), batch, rngs="noise")
    assert 'make_train_step(loss_fn, rngs=("dropout",))' in notes(raised)


def test_a_model_that_trains_in_evaluation():
    def always(apply, batch, train):
        return classification_loss(lambda x, train: apply(x, train=True), batch, train)

    batch = examples()
    with pytest.raises(errors.FlaxError) as raised:
        make_eval_step(always)(state_of(Noisy(), chain(SAM), batch[0]), batch)
    assert "not train" in notes(raised)


def test_a_model_without_train():
    state = TrainState.init(nn.Dense(3), chain(SAM), jax.random.key(0), examples()[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'") as raised:
        step(classification_loss, state, examples())
    assert "def loss_fn(apply, batch, train)" in notes(raised)


def gradient_penalty(apply, batch, train, **kwargs):
    """With the gradient by the inputs, in training mode."""
    slope = jax.grad(lambda x: apply(x, train=train, **kwargs).sum())(batch[0])
    loss, metrics = classification_loss(apply, batch, train)
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
