"""A train step passes the unscaled loss of the clean pass to transformations that use it."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import flatreg
import flatreg.linen
import flatreg.nnx
from tests.support.assertions import assert_leaves_close
from tests.support.networks import linen_models, nnx_models
from tests.support.steps import examples, x64

CHAINS = {
    # The learning rate falls whenever a loss is not 0.05 below the best previous one.
    "reduce_on_plateau": optax.chain(
        flatreg.sam(0.1),
        optax.sgd(0.1),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=0.05),
    ),
    "polyak_sgd": optax.chain(flatreg.sam(0.1), optax.polyak_sgd(max_learning_rate=0.3)),
    "plateau_alone": optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0, atol=0.05)
    ),
}
STEPS = 6
every_chain = pytest.mark.parametrize(
    ("name", "scale", "options"),
    [
        ("reduce_on_plateau", DynamicScale(scale=1024.0), {}),
        ("polyak_sgd", None, {"microbatches": 4}),
        ("plateau_alone", None, {}),
    ],
)


def plain_loop(tx, loss_fn, params, batch):
    """The parameters and the optimizer state after a loop that uses Optax alone."""

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        extra = {"value": value, "grad_fn": lambda params: jax.grad(loss_fn)(params, batch)}
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for _ in range(STEPS):
        params, opt_state = step(params, opt_state)
    return params, opt_state


@pytest.mark.nightly_except("reduce_on_plateau-*")
@x64
@every_chain
def test_a_linen_step_equals_a_plain_optax_loop(name, scale, options):
    batch = examples(jnp.float64)
    model = linen_models.Plain()
    state = linen_models.state_of(model, CHAINS[name], batch[0], dynamic_scale=scale)

    def loss_fn(params, batch):
        logits = model.apply({"params": params}, batch[0], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    expected = plain_loop(CHAINS[name], loss_fn, state.params, batch)
    step = jax.jit(flatreg.linen.make_train_step(flatreg.linen.classification_loss, **options))
    for _ in range(STEPS):
        state, _ = step(state, batch)
    assert_leaves_close((state.params, state.opt_state), expected, 1e-9, atol=1e-12)


@pytest.mark.nightly_except("plateau_alone-*")
@x64
@every_chain
def test_an_nnx_step_equals_a_plain_optax_loop(name, scale, options):
    batch = examples(jnp.float64)
    model = nnx_models.in_float64(nnx_models.Plain(nnx.Rngs(0)))
    graphdef, params = nnx.split(model)

    def loss_fn(params, batch):
        logits = nnx.merge(graphdef, params)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    expected, _ = plain_loop(CHAINS[name], loss_fn, jax.tree.map(jnp.copy, params), batch)
    optimizer = flatreg.nnx.Optimizer(model, CHAINS[name], wrt=nnx.Param, dynamic_scale=scale)
    step = nnx.jit(flatreg.nnx.make_train_step(flatreg.nnx.classification_loss, **options))
    for _ in range(STEPS):
        step(model, optimizer, batch)
    assert_leaves_close(nnx.state(model), expected, 1e-9, atol=1e-12)


def test_the_learning_rate_falls_when_the_loss_stays():
    """Otherwise the comparisons above would not test the loss that the step passes."""
    state = linen_models.state_of(linen_models.Plain(), CHAINS["reduce_on_plateau"], examples()[0])
    step = jax.jit(flatreg.linen.make_train_step(flatreg.linen.classification_loss))
    for _ in range(STEPS):
        state, _ = step(state, examples())
    assert 0 < optax.tree.get(state.opt_state, "scale") < 1


def test_apply_gradients_passes_the_loss():
    batch = examples()
    tx = optax.polyak_sgd(max_learning_rate=100.0)
    state = linen_models.state_of(linen_models.Plain(), tx, batch[0])
    ones = jax.tree.map(jnp.ones_like, state.params)
    new = state.apply_gradients(grads=ones, value=jnp.array(3.0))
    count = sum(w.size for w in jax.tree.leaves(ones))  # Polyak's step is (L − 0) / ‖g‖².
    expected = jax.tree.map(lambda w: w - 3 / count, state.params)
    assert_leaves_close(new.params, expected, 1e-6, atol=0)
