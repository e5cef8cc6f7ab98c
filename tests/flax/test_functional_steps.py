"""The option ``forward_fn`` of the train steps: Functional-SAM with BatchNorm and dropout."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import flatreg
from flatreg import linen
from flatreg import nnx as flatreg_nnx
from tests.support.assertions import assert_close, assert_leaves_close
from tests.support.devices import DEVICES, assert_each_device_has, on_devices, stacked_parts
from tests.support.networks import linen_models, nnx_models
from tests.support.networks.linen_models import clean_forward, state_of, step_keys
from tests.support.steps import examples, x64

RHO = 0.3
TX = optax.chain(flatreg.sam(RHO), optax.sgd(1.0))

in_both_settings = pytest.mark.parametrize(
    "setting", ["shard_map", pytest.param("pmap", marks=pytest.mark.nightly)]
)


def linen_forward(apply, batch, train):
    return apply(batch[0], train=train)


def nnx_forward(model, batch):
    return model(batch[0])


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(jax.jit, static_argnums=(0, 2))
def functional_step(outputs_of, params, loss_of):
    """By hand: θ − J_F(θ + ρĝ)ᵀ ∇ℓ(F(θ)), and the loss ℓ(F(θ))."""
    g = jax.grad(lambda params: loss_of(outputs_of(params)))(params)
    worst = optax.tree.add_scale(params, RHO / optax.tree.norm(g), g)
    outer = jax.grad(loss_of)(outputs_of(params))
    d = jax.grad(lambda params: optax.tree.vdot(outer, outputs_of(params)))(worst)
    return optax.tree.sub(params, d), loss_of(outputs_of(params))


@pytest.mark.slow
@x64
def test_linen_step_is_functional_sam_with_the_clean_statistics():
    x, labels = batch = examples(jnp.float64)
    state = state_of(linen_models.Noisy(), TX, x)
    step = linen.make_train_step(linen.classification_loss, forward_fn=linen_forward)
    new, metrics = jax.jit(step)(state, batch)

    def logits_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        return state.apply_fn(
            variables, x, train=True, rngs=step_keys(state), mutable=["batch_stats"]
        )[0]

    expected = functional_step(logits_of, state.params, lambda x: cross_entropy(x, labels))
    assert_close((new.params, metrics["loss"]), expected, 1e-9)
    _, batch_stats = jax.jit(clean_forward)(state, state.params, batch)
    assert_close(new.batch_stats, batch_stats, 1e-9)


@pytest.mark.nightly_except("1")
@x64
@pytest.mark.parametrize("microbatches", [1, 4])
def test_nnx_step_is_functional_sam(microbatches):
    x, labels = batch = examples(jnp.float64)
    model = nnx_models.in_float64(nnx_models.Plain(nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    expected = functional_step(  # before the step changes the Variables
        lambda params: nnx.merge(graphdef, params)(x),
        params,
        lambda logits: cross_entropy(logits, labels),
    )
    step = flatreg_nnx.make_train_step(
        flatreg_nnx.classification_loss, microbatches=microbatches, forward_fn=nnx_forward
    )
    optimizer = flatreg_nnx.Optimizer(model, TX, wrt=nnx.Param)
    metrics = nnx.jit(step)(model, optimizer, batch)
    assert_leaves_close((nnx.state(model, nnx.Param), metrics["loss"]), expected)


@pytest.mark.slow
@x64
def test_linen_passes_keys_and_arguments_to_both_functions():
    """Each of two microbatches has its own key. The loss scale changes nothing."""
    x, labels = batch = examples(jnp.float64)
    key = jax.random.key(5)
    state = state_of(linen_models.Plain(), TX, x, dynamic_scale=DynamicScale())

    def noisy(x, key):
        return x + jax.random.normal(key, x.shape, x.dtype)

    def forward_fn(apply, batch, train, key, *, weight):
        return apply(noisy(batch[0], key), train=train)

    def loss_fn(apply, batch, train, key, *, weight):
        return weight * cross_entropy(apply(noisy(batch[0], key), train=train), batch[1])

    step = linen.make_train_step(loss_fn, forward_fn=forward_fn, key_argnums=3, microbatches=2)
    new, metrics = jax.jit(step)(state, batch, key, weight=2.0)

    def logits_of(params):
        parts = [noisy(x[i::2], jax.random.fold_in(key, i)) for i in range(2)]
        return jnp.stack([state.apply_fn({"params": params}, part, train=True) for part in parts])

    parts = jnp.stack([labels[i::2] for i in range(2)])
    loss_of = lambda logits: 2.0 * cross_entropy(logits, parts)  # noqa: E731
    expected = functional_step(logits_of, state.params, loss_of)
    assert_close((new.params, metrics["loss"]), expected, 1e-9)


class Notes(nnx.Module):
    """An NNX object in which the network leaves a number for the loss, and random streams."""

    def __init__(self):
        self.rngs = nnx.Rngs(7)
        self.size = nnx.Variable(jnp.zeros(()))


@x64
def test_nnx_loss_continues_with_objects_of_the_network():
    """The number is one of the network's outputs: its gradient is taken at θ + ρĝ, too."""
    x, labels = batch = examples(jnp.float64)
    model, notes = nnx_models.in_float64(nnx_models.Plain(nnx.Rngs(0))), Notes()
    graphdef, params = nnx.split(model, nnx.Param)
    streams = nnx.Rngs(7)
    first, second = streams(), streams()

    def forward_fn(model, batch, notes):
        logits = model(batch[0] + jax.random.normal(notes.rngs(), x.shape))
        notes.size[...] = jnp.mean(logits**2)
        return logits

    def loss_fn(logits_of, batch, notes):
        logits = logits_of(batch[0])
        noise = jax.random.normal(notes.rngs(), logits.shape)
        return cross_entropy(logits + noise, batch[1]) + notes.size[...]

    def outputs_of(params):
        logits = nnx.merge(graphdef, params)(x + jax.random.normal(first, x.shape))
        return logits, jnp.mean(logits**2)

    def loss_of(outputs):
        logits, size = outputs
        return cross_entropy(logits + jax.random.normal(second, logits.shape), labels) + size

    expected = functional_step(outputs_of, params, loss_of)
    size = outputs_of(params)[1]
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    step = nnx.jit(flatreg_nnx.make_train_step(loss_fn, forward_fn=forward_fn))
    metrics = step(model, optimizer, batch, notes)
    assert_leaves_close((nnx.state(model, nnx.Param), metrics["loss"]), expected)
    assert notes.rngs.default.count[...] == 2
    assert_leaves_close(notes.size[...], size)


@pytest.mark.slow
@x64
@in_both_settings
def test_linen_step_on_devices_is_that_of_the_whole_batch(setting):
    batch = examples(jnp.float64, count=4 * DEVICES)
    parts, labels = stacked_parts(batch)
    state = state_of(linen_models.Noisy(), TX, batch[0])
    of_step = jax.random.fold_in(state.key, state.step)

    def outputs_of(params):
        def one_device(i, x):
            return state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                x,
                train=True,
                rngs=step_keys(state.replace(key=of_step, step=i)),
                mutable=["batch_stats"],
            )

        return jax.vmap(one_device)(jnp.arange(DEVICES), parts)

    logits_of = lambda params: outputs_of(params)[0]  # noqa: E731
    expected = functional_step(logits_of, state.params, lambda x: cross_entropy(x, labels))
    _, updated = jax.jit(outputs_of)(state.params)
    statistics = jax.tree.map(lambda x: x.mean(0), updated["batch_stats"])

    def step(state, batch):
        new, metrics = linen.make_train_step(
            linen.classification_loss, forward_fn=linen_forward, axis_name="data"
        )(state, batch)
        return (new.params, metrics["loss"]), new.batch_stats

    assert_each_device_has(on_devices(setting, step)(state, batch), (expected, statistics))


@pytest.mark.slow
@x64
@in_both_settings
def test_nnx_step_on_devices_is_that_of_the_whole_batch(setting):
    batch = examples(jnp.float64, count=4 * DEVICES)
    parts, labels = stacked_parts(batch)
    model = nnx_models.in_float64(nnx_models.Noisy(nnx.Rngs(0)))
    optimizer = flatreg_nnx.Optimizer(model, TX, wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))
    model_def, params, rest = nnx.split(model, nnx.Param, ...)

    def outputs_of(params):
        def one_device(i, x):
            copy = nnx.merge(model_def, params, rest, copy=True)
            copy.dropout.rngs.key[...] = jax.random.fold_in(copy.dropout.rngs.key[...], i)
            return copy(x), nnx_models.arrays(copy, nnx.BatchStat)

        return jax.vmap(one_device)(jnp.arange(DEVICES), parts)

    logits_of = lambda params: outputs_of(params)[0]  # noqa: E731
    new, loss = functional_step(logits_of, params, lambda x: cross_entropy(x, labels))
    statistics = jax.tree.map(lambda x: x.mean(0), jax.jit(outputs_of)(params)[1])

    def step(state, batch):
        model, optimizer = nnx.merge(graphdef, state, copy=True)
        metrics = flatreg_nnx.make_train_step(
            flatreg_nnx.classification_loss, forward_fn=nnx_forward, axis_name="data"
        )(model, optimizer, batch)
        trained = nnx_models.arrays(model, nnx.Param)
        statistics = nnx_models.arrays(model, nnx.BatchStat)
        return trained, metrics["loss"], statistics, model.dropout.rngs.count[...]

    actual = on_devices(setting, step)(state, batch)
    assert_each_device_has(actual, (jax.tree.leaves(new), loss, statistics, 1))


def linen_step(loss_fn, forward_fn, *args):
    state = state_of(linen_models.Plain(), TX, examples()[0])
    step = linen.make_train_step(
        lambda apply, batch, train, *_: loss_fn(apply, batch), forward_fn=forward_fn
    )
    jax.eval_shape(step, state, examples(), *args)


def nnx_step(loss_fn, forward_fn, *args):
    model = nnx_models.Plain(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    step = flatreg_nnx.make_train_step(
        lambda model, batch, *_: loss_fn(model, batch), forward_fn=forward_fn
    )
    nnx.eval_shape(step, model, optimizer, examples(), *args)


@pytest.mark.parametrize(
    ("run", "forward_fn"),
    [(linen_step, linen_forward), (nnx_step, nnx_forward)],
    ids=["linen", "nnx"],
)
def test_wrong_functions_raise_errors_that_show_the_call(run, forward_fn):
    with pytest.raises(AttributeError, match=r"no attribute 'variables'. Return everything that"):
        run(lambda model, batch: jnp.sum(model.variables), forward_fn)
    with pytest.raises(ValueError, match=r"never called apply|must call its first argument"):
        run(lambda model, batch: jnp.mean(batch[0]), forward_fn)
    with pytest.raises(TypeError, match=r"calls forward_fn\(.*def forward_fn\(.*, \*args"):
        run(lambda model, batch: jnp.mean(model(batch[0])), forward_fn, 2.0)


def test_linen_forward_fn_must_take_and_call_apply():
    loss_fn = lambda apply, batch: jnp.mean(apply())  # noqa: E731
    with pytest.raises(TypeError, match=r"forward_fn must take \(apply, batch, train\)"):
        linen_step(loss_fn, lambda apply, batch: apply(batch[0], train=True))
    with pytest.raises(ValueError, match="forward_fn never called apply"):
        linen_step(loss_fn, lambda apply, batch, train: batch[0])


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(
            linen.make_train_step, linen.classification_loss, forward_fn=linen_forward
        ),
        functools.partial(
            flatreg_nnx.make_train_step, flatreg_nnx.classification_loss, forward_fn=nnx_forward
        ),
    ],
    ids=["linen", "nnx"],
)
def test_forward_fn_and_ascent_fraction_exclude_each_other(make):
    with pytest.raises(ValueError, match="forward_fn and ascent_fraction cannot be used together"):
        make(ascent_fraction=0.5)
