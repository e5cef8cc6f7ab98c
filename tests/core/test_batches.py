"""A batch in parts: microbatches only save memory, and each shard has its own direction.

All tests use float64 and a loss that is a mean over examples. Tests about keys add random noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import CASES, Case, every_kind
from tests.support.losses import examples, flat, logistic, logistic_loss

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
x64 = pytest.mark.usefixtures("x64")


def noisy(params, batch, key):
    """The loss on features with noise that is drawn from the key."""
    x, signs = batch
    return logistic_loss(params, (x + jax.random.uniform(key, x.shape), signs))


def blocks(batch, count):
    """The batch split into contiguous parts."""
    x, y = batch
    return list(zip(jnp.split(x, count), jnp.split(y, count), strict=True))


def strides(batch, count):
    """The batch split into interleaved parts."""
    x, y = batch
    return [(x[i::count], y[i::count]) for i in range(count)]


def direction(method, loss_fn, *args, state=None, **options):
    """The direction and state of the method with ``value_and_grad_fn``."""
    params = logistic().params
    _, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, *args)
    state = method.init(params) if state is None else state
    d, state = method.update(grads, state, params, grad_fn=grad_fn)
    return flat(d), state


def surrogate_gradient(case, loss, **changes):
    """The gradient of the surrogate of a case, for a loss on trees."""
    problem = logistic()._replace(loss=loss)
    return jax.grad(lambda w: case.surrogate(problem.loss_of_vector, w, **changes))(problem.vector)


def mean_over_shards(case, loss_fn, count, key=None, **changes):
    """The mean over the shards of the gradient of the surrogate, each with its own key."""
    total = 0
    for i, shard in enumerate(blocks(examples(), count)):
        keys = {} if key is None else {"key": jax.random.fold_in(key, i)}
        loss = functools.partial(loss_fn, batch=shard, **keys)
        total = total + surrogate_gradient(case, loss, **changes)
    return total / count


@pytest.mark.nightly_except("3-sam", "3-perturbed_gradient")
@x64
@every_kind
@pytest.mark.parametrize("shards", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_per_shard_is_the_mean_of_the_shards_directions(case: Case, shards):
    key = jax.random.key(40)
    d, _ = direction(
        flatreg.per_shard(case.make()), noisy, examples(), key, shards=shards, key_argnums=2
    )
    np.testing.assert_allclose(d, mean_over_shards(case, noisy, shards, key), **CLOSE)


@pytest.mark.slow
@x64
def test_per_shard_has_one_state_for_all_shards():
    case, rhos = CASES[0], jnp.array([0.1, 0.3])
    method, state = flatreg.per_shard(case.make(rho=lambda step: rhos[step])), None
    for rho in rhos:
        d, state = direction(method, logistic_loss, examples(), state=state, shards=2)
        np.testing.assert_allclose(d, mean_over_shards(case, logistic_loss, 2, rho=rho), **CLOSE)


@x64
def test_per_shard_averages_the_states_of_a_stateful_method():
    """The state of this method is a count and the last gradient, which it adds to the next one."""

    def remember(grad_fn, params, g, memory):
        count, last = memory
        return optax.tree.add(g, last), (count + 1, g)

    method = flatreg.from_stateful_direction(
        lambda params: (jnp.zeros((), jnp.int32), optax.tree.zeros_like(params)), remember
    )
    sharded = flatreg.per_shard(method)
    g = flat(jax.grad(logistic().loss)(logistic().params))
    d, state = direction(sharded, logistic_loss, examples(), shards=3)
    np.testing.assert_allclose(d, g, **CLOSE)
    d, state = direction(sharded, logistic_loss, examples(), state=state, shards=3)
    np.testing.assert_allclose(d, 2 * g, **CLOSE)
    assert state.inner[0] == 2
    assert jax.tree.structure(state) == jax.tree.structure(method.init(logistic().params))


@pytest.mark.slow
@x64
def test_shards_share_the_steps_of_a_combinator():
    """Under ``every`` and ``randomly``, a step applies the method to all shards or to none."""
    case, key = CASES[0], jax.random.key(2)
    on = mean_over_shards(case, logistic_loss, 3)
    off = mean_over_shards(case, logistic_loss, 3, rho=0.0)
    draws = [bool(jax.random.bernoulli(jax.random.fold_in(key, t))) for t in range(4)]
    for sometimes, steps in (
        (flatreg.every(case.make(), 2), [True, False, True, False]),
        (flatreg.randomly(case.make(), 0.5, key), draws),
    ):
        assert set(steps) == {True, False}
        method = flatreg.per_shard(sometimes)
        update = jax.jit(
            lambda state, tx=method: direction(tx, logistic_loss, examples(), state=state, shards=3)
        )
        state = method.init(logistic().params)
        for is_on in steps:
            d, state = update(state)
            np.testing.assert_allclose(d, on if is_on else off, **CLOSE)


@pytest.mark.nightly_except("sam", "perturbed_gradient")
@x64
@every_kind
def test_microbatches_do_not_change_the_direction(case: Case):
    hvps = (flatreg.exact_hvp, flatreg.forward_hvp)
    methods = [case.make(hvp=hvp) for hvp in hvps] if case.uses_hvp else [case.make()]

    @jax.jit
    def directions(batch):
        return [direction(tx, logistic_loss, batch, microbatches=4)[0] for tx in methods]

    whole, _ = direction(case.make(), logistic_loss, examples())
    for d in directions(examples()):
        np.testing.assert_allclose(d, whole, **CLOSE)


@x64
def test_microbatches_interleave_examples_and_fold_keys():
    params, batch, key = logistic().params, examples(), jax.random.key(44)

    def written_out(params):
        parts = enumerate(strides(batch, 4))
        return sum(noisy(params, part, jax.random.fold_in(key, i)) for i, part in parts) / 4

    value, grads, grad_fn = flatreg.value_and_grad_fn(noisy, key_argnums=2, microbatches=4)(
        params, batch, key
    )
    np.testing.assert_allclose(value, written_out(params), **CLOSE)
    np.testing.assert_allclose(flat(grads), flat(jax.grad(written_out)(params)), **CLOSE)
    for elsewhere in (jax.tree.map(jnp.sin, params), params):
        expected = flat(jax.grad(written_out)(elsewhere))
        np.testing.assert_allclose(flat(grad_fn(elsewhere)), expected, **CLOSE)


@x64
@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_floating_aux_is_averaged_and_other_aux_is_the_last(option):
    x = jnp.arange(12.0)

    def loss_fn(w, x):
        aux = {"mean": x.mean(), "half": jnp.float16(x[0]), "index": x.astype(int), "sign": x > 9}
        return w * x.mean(), aux

    evaluate = flatreg.value_and_grad_fn(loss_fn, has_aux=True, **{option: 4})
    (value, aux), _, _ = evaluate(jnp.asarray(2.0), x)
    last = x[3::4] if option == "microbatches" else x[9:]
    firsts = x[:4] if option == "microbatches" else x[::3]
    np.testing.assert_allclose([value, aux["mean"], aux["half"]], [11, 5.5, firsts.mean()])
    assert aux["half"].dtype == jnp.float16
    np.testing.assert_array_equal(aux["index"], last)
    np.testing.assert_array_equal(aux["sign"], last > 9)


@pytest.mark.slow
@x64
def test_each_shard_is_split_into_microbatches():
    params, key = logistic().params, jax.random.key(45)

    def of_shard(params, shard, index):
        folded = jax.random.fold_in(key, index)
        parts = enumerate(strides(shard, 3))
        return sum(noisy(params, part, jax.random.fold_in(folded, i)) for i, part in parts) / 3

    shards = blocks(examples(), 2)
    losses = [functools.partial(of_shard, shard=x, index=i) for i, x in enumerate(shards)]
    options = {"key_argnums": 2, "shards": 2, "microbatches": 3}
    value, grads, _ = flatreg.value_and_grad_fn(noisy, **options)(params, examples(), key)
    np.testing.assert_allclose(value, sum(loss(params) for loss in losses) / 2, **CLOSE)
    expected = sum(flat(jax.grad(loss)(params)) for loss in losses) / 2
    np.testing.assert_allclose(flat(grads), expected, **CLOSE)
    d, _ = direction(flatreg.per_shard(CASES[0].make()), noisy, examples(), key, **options)
    expected = sum(surrogate_gradient(CASES[0], loss) for loss in losses) / 2
    np.testing.assert_allclose(d, expected, **CLOSE)


@x64
def test_oracle_of_shards_can_be_jitted():
    params = logistic().params
    _, grads, grad_fn = flatreg.value_and_grad_fn(logistic_loss, shards=3)(params, examples())
    np.testing.assert_allclose(flat(jax.jit(grad_fn)(params)), flat(grads), **CLOSE)


@x64
@pytest.mark.parametrize(
    "options", [{}, {"microbatches": 3}, {"shards": 3}, {"ascent_fraction": 0.5}], ids=str
)
def test_keyword_arguments_are_not_split(options):
    """Keyword arguments reach every pass unchanged, as in ``jax.value_and_grad``."""
    params, (x, y) = logistic().params, examples()
    seen = 6 if "ascent_fraction" in options else 12

    def scaled(params, batch, *, scale):
        return scale[0] * logistic_loss(params, batch)

    scale = jnp.array([2.0, 3.0])  # of another size than the batch
    evaluate = flatreg.value_and_grad_fn(scaled, **options)
    value, grads, grad_fn = evaluate(params, (x, y), scale=scale)
    first = x[:seen], y[:seen]
    for got, batch in ((grads, first), (grad_fn(params), (x, y))):
        expected = jax.grad(logistic_loss)(params, batch)
        np.testing.assert_allclose(flat(got), 2 * flat(expected), **CLOSE)
    np.testing.assert_allclose(value, 2 * logistic_loss(params, first), **CLOSE)
