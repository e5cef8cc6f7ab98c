"""``flatreg.nnx.value_and_grad_fn`` with a stock ``nnx.Optimizer`` equals ``make_train_step``."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import classification_loss, value_and_grad_fn
from tests.support.assertions import assert_leaves_close, assert_leaves_equal
from tests.support.networks.nnx_models import (
    MODES,
    Adapted,
    Adapter,
    Mask,
    Noisy,
    Plain,
    arrays,
    in_both_modes,
    in_float64,
    trained,
)
from tests.support.sam_by_hand import mean_sam_direction, parts_of
from tests.support.steps import chain, examples, only_cases, x64

SOME_STEPS = 4


def batches():
    return [examples(jnp.float64, seed=seed) for seed in range(SOME_STEPS)]


def noisy():
    return in_float64(Noisy(nnx.Rngs(0)))


def stock_training(model, tx, batches, mode=(), **options):
    """The model, its stock optimizer and the last loss, after one step on each batch."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param, **dict(mode))
    evaluate = value_and_grad_fn(classification_loss, has_aux=True, **options)

    def step(model, optimizer, batch):
        (loss, metrics), grads, grad_fn = evaluate(model, batch)
        optimizer.update(model, grads, grad_fn=grad_fn)
        return {"loss": loss, **metrics}

    step = nnx.jit(step, **dict(mode))
    for batch in batches:
        metrics = step(model, optimizer, batch)
    return model, optimizer, metrics


@pytest.mark.nightly_except("sam-{}")
@x64
@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"ascent_fraction": 0.5}], ids=repr)
@only_cases("sam", "gam", "gradient_norm_penalty_2", nightly=("gam", "gradient_norm_penalty_2"))
def test_stock_optimizer_equals_the_train_step(case, options):
    """The network has BatchNorm and dropout; all its Variables are compared.

    With ``ascent_fraction``, only the train step takes statistics and metrics from the whole batch.
    """
    mode = MODES[-1] if case.name == "sam" else MODES[0]
    model, optimizer, metrics = stock_training(
        noisy(), chain(case.make()), batches(), mode, **options
    )
    expected, other, expected_metrics = trained(
        noisy(), chain(case.make()), batches(), mode=mode, **options
    )
    assert_leaves_close(arrays(model, nnx.Param), arrays(expected, nnx.Param))
    assert_leaves_close(arrays(optimizer.opt_state), arrays(other.opt_state))
    assert model.dropout.rngs.count[...] == SOME_STEPS
    if "ascent_fraction" not in options:
        assert_leaves_close(arrays(model), arrays(expected))
        del expected_metrics["skipped"]
        assert_leaves_close(metrics, expected_metrics)


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@x64
@in_both_modes
def test_each_shard_has_its_own_perturbation(mode):
    model = in_float64(Plain(nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    params, batch = arrays(model), examples(jnp.float64)

    def gradient_of(part):
        def loss(leaves):
            full = jax.tree.unflatten(jax.tree.structure(state), leaves)
            return classification_loss(nnx.merge(graphdef, full), part)[0]

        return jax.grad(loss)

    mean = mean_sam_direction(params, [gradient_of(part) for part in parts_of(batch, 4)], 0.3)
    tx = optax.chain(flatreg.per_shard(flatreg.sam(0.3)), optax.sgd(1.0))
    stock_training(model, tx, [batch], mode=mode, shards=4)
    assert_leaves_close(arrays(model), optax.tree.sub(params, mean))


@pytest.mark.slow
def test_statistics_and_counts_change_once_per_step():
    batch, model = examples(), Noisy(nnx.Rngs(0))
    params = arrays(model, nnx.Param)
    expected = Noisy(nnx.Rngs(0))
    classification_loss(expected, batch)  # one forward pass
    _, grads, grad_fn = value_and_grad_fn(classification_loss, has_aux=True)(model, batch)
    after = arrays(model)
    for kind in (nnx.BatchStat, nnx.RngState):
        assert_leaves_close(arrays(model, kind), arrays(expected, kind), 1e-6)
    pure = nnx.as_pure(nnx.state(model, nnx.Param))
    assert_leaves_equal(grad_fn(pure), grads)  # the same mask, although the count has changed
    grad_fn(jax.tree.map(lambda x: x + 1, pure))
    assert_leaves_equal(arrays(model), after)
    assert_leaves_equal(arrays(model, nnx.Param), params)


@pytest.mark.slow
def test_several_arguments_keys_and_keywords_reach_the_loss():
    """Microbatch i has the key ``fold_in(key, i)``, and the mask of the model is its own too."""
    x, labels = examples()
    key = jax.random.key(3)

    def loss_fn(model, x, labels, key, *, weight):
        noise = jax.random.normal(key, x.shape)
        loss, metrics = classification_loss(model, (x + noise, labels))
        return weight * loss, metrics

    options = {"has_aux": True, "batch_argnums": (1, 2), "key_argnums": 3}
    evaluate = value_and_grad_fn(loss_fn, microbatches=2, **options)
    (loss, _), _, _ = evaluate(Plain(nnx.Rngs(0)), x, labels, key, weight=2.0)
    expected = [
        loss_fn(Plain(nnx.Rngs(0)), x[i::2], labels[i::2], jax.random.fold_in(key, i), weight=2.0)
        for i in range(2)
    ]
    assert_leaves_close(loss, (expected[0][0] + expected[1][0]) / 2, 1e-6)
    (whole, _), _, _ = value_and_grad_fn(loss_fn, **options)(
        Plain(nnx.Rngs(0)), x, labels, key, weight=2.0
    )
    assert_leaves_close(whole, loss_fn(Plain(nnx.Rngs(0)), x, labels, key, weight=2.0)[0], 1e-6)


def test_microbatches_have_different_masks():
    def masks(model, x):
        out = model(x)
        return jnp.mean(out), out[0]

    evaluate = value_and_grad_fn(masks, has_aux=True, microbatches=2)
    (_, mean_of_masks), _, _ = evaluate(Mask(nnx.Rngs(0)), jnp.ones((4, 1)))
    assert 1.0 in mean_of_masks  # the mean of 0 and 2, where the masks differ


def test_the_filter_selects_what_is_trained():
    model = Adapted(nnx.Rngs(0), width=4)
    optimizer = nnx.Optimizer(model, chain(flatreg.sam()), wrt=Adapter)
    frozen, factors = arrays(model, nnx.Param), arrays(model, Adapter)

    @nnx.jit
    def step(model, optimizer, x):
        evaluate = value_and_grad_fn(lambda model, x: jnp.mean(model(x) ** 2), wrt=Adapter)
        loss, grads, grad_fn = evaluate(model, x)
        optimizer.update(model, grads, grad_fn=grad_fn)
        return loss

    step(model, optimizer, jnp.ones((2, 4)))
    assert_leaves_equal(arrays(model, nnx.Param), frozen)
    assert all(jnp.any(x != y) for x, y in zip(arrays(model, Adapter), factors, strict=True))


@pytest.mark.slow
def test_devices_average_everything():
    """The axis is that of ``vmap``."""
    x, labels = examples()
    evaluate = value_and_grad_fn(classification_loss, has_aux=True, axis_name="data")
    graphdef, state = nnx.split(Plain(nnx.Rngs(0)))

    def on_device(state, batch):
        model = nnx.merge(graphdef, state, copy=True)
        (loss, metrics), grads, grad_fn = evaluate(model, batch)
        return loss, metrics, grads, grad_fn(nnx.as_pure(nnx.state(model, nnx.Param)))

    parts = x.reshape(4, 4, 4), labels.reshape(4, 4)
    out = jax.vmap(on_device, in_axes=(None, 0), axis_name="data")(state, parts)
    (loss, metrics), grads, _ = value_and_grad_fn(classification_loss, has_aux=True)(
        Plain(nnx.Rngs(0)), (x, labels)
    )
    repeated = jax.tree.map(lambda x: jnp.stack([x] * 4), (loss, metrics, grads, grads))
    assert_leaves_close(out, repeated, 1e-5)


class TestErrors:
    """Errors at once, or while the step is traced."""

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"microbatches": 0}, "microbatches must be"),
            ({"batch_argnums": 0}, "0 is params"),
            ({"ascent_fraction": 2.0}, "ascent_fraction must be"),
        ],
        ids=repr,
    )
    def test_options_out_of_range_raise_at_once(self, options, text):
        with pytest.raises(ValueError, match=text):
            value_and_grad_fn(classification_loss, **options)

    def test_loss_that_returns_a_tuple_needs_has_aux(self):
        with pytest.raises(TypeError, match=r"value_and_grad_fn\(loss_fn, has_aux=True\)"):
            value_and_grad_fn(classification_loss)(Plain(nnx.Rngs(0)), examples())

    @pytest.mark.parametrize("options", [{"microbatches": 2}, {"ascent_fraction": 0.5}], ids=repr)
    def test_missing_batch_is_named_by_its_number(self, options):
        evaluate = value_and_grad_fn(classification_loss, batch_argnums=2, **options)
        with pytest.raises(ValueError, match=r"argument 2 of the loss.*called with 1 after"):
            evaluate(Plain(nnx.Rngs(0)), examples())

    def test_loss_that_creates_variables_raises(self):
        def loss_fn(model, batch):
            model.extra = nnx.Variable(jnp.zeros(()))
            return classification_loss(model, batch)

        with pytest.raises(ValueError, match=r"created or removed Variables"):
            value_and_grad_fn(loss_fn, has_aux=True)(Plain(nnx.Rngs(0)), examples())
