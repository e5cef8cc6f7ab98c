"""The number of oracle calls per step: the declared number, and none on a step without the method.

XLA's cost analysis counts both branches of a ``cond``. So these tests count the calls of a wrapped
``grad_fn`` while tracing, and the calls of a callback inside it at run time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import Case, every_case

START = np.array([1.0, -2.0, 0.5], np.float32)


def loss_fn(w):
    return jnp.sum(jnp.cosh(w))


class Counter:
    """A gradient oracle that counts how often it is traced and how often it runs."""

    def __init__(self):
        self.traced = self.ran = 0

    def __call__(self, w):
        self.traced += 1
        jax.debug.callback(self._count)
        return jax.grad(loss_fn)(w)

    def _count(self):
        self.ran += 1

    def runs(self):
        jax.effects_barrier()
        return self.ran


def walk(method, oracle, steps, w=START):
    """The directions of several steps of gradient descent in a ``lax.scan``."""

    def step(carry, _):
        w, state = carry
        d, state = method.update(jax.grad(loss_fn)(w), state, w, grad_fn=oracle)
        return (w - 0.1 * d, state), d

    return jax.lax.scan(step, (w, method.init(w)), length=steps)[1]


@every_case
def test_method_traces_the_oracle_the_declared_number_of_times(case: Case):
    method, oracle = case.make(), Counter()
    update = lambda g, w: method.update(g, method.init(w), w, grad_fn=oracle)[0]  # noqa: E731
    jax.eval_shape(update, START, START)
    assert oracle.traced == case.calls


@pytest.mark.nightly_except(
    "sam", "gam", "perturbed_gradient", "looksam", "combine", "gradient_norm_penalty_1"
)
@every_case
def test_combinators_trace_the_oracle_no_more_often(case: Case):
    for wrapped, calls in (
        (flatreg.every(case.make(), 3), case.calls),
        (flatreg.after(case.make(), 3), case.calls),
        (flatreg.randomly(case.make(), 0.5, jax.random.key(0)), case.calls),
        (flatreg.combine(case.make(), flatreg.sam(0.1)), case.calls + 1),
    ):
        oracle = Counter()
        update = lambda g, w, tx=wrapped, f=oracle: tx.update(g, tx.init(w), w, grad_fn=f)[0]  # noqa: E731
        jax.eval_shape(update, START, START)
        assert oracle.traced == calls


def test_every_skips_the_oracle_in_a_jitted_loop():
    method, oracle, w = flatreg.every(flatreg.sam(0.1), 5), Counter(), START
    update = jax.jit(lambda g, state, w: method.update(g, state, w, grad_fn=oracle))
    state = method.init(w)
    for step in range(11):
        _, state = update(w, state, w)
        assert oracle.runs() == 1 + step // 5  # on the steps 0, 5, 10
    assert oracle.traced == 1


def test_every_skips_the_oracle_in_a_scan():
    oracle = Counter()
    jax.jit(lambda: walk(flatreg.every(flatreg.sam(0.1), 5), oracle, steps=12))()
    assert oracle.runs() == 3


def test_every_skips_the_oracle_of_seeds_under_lax_map():
    oracle, method = Counter(), flatreg.every(flatreg.sam(0.1), 5)
    starts = np.stack([START, 2 * START])
    jax.lax.map(lambda w: walk(method, oracle, steps=12, w=w), starts)
    assert oracle.runs() == 2 * 3


def test_every_applies_all_gradients_of_a_method_at_once():
    oracle = Counter()
    walk(flatreg.every(flatreg.gam_accelerated(), 4), oracle, steps=8)
    assert oracle.runs() == 2 * 3


@pytest.mark.parametrize("k", [1, 2, 5])
def test_every_alternates_the_method_and_the_plain_gradient(k):
    method, plain = flatreg.sam(0.1), jax.grad(loss_fn)
    directions = walk(flatreg.every(method, k), plain, steps=6)
    w = START
    for step, d in enumerate(directions):
        g = plain(w)
        expected = plain(w + 0.1 * g / jnp.linalg.norm(g)) if step % k == 0 else g
        np.testing.assert_allclose(d, expected, rtol=1e-6)
        w = w - 0.1 * d


@pytest.mark.parametrize("first", [0, 3])
def test_after_runs_the_oracle_from_its_first_step_on(first):
    oracle = Counter()
    directions = walk(flatreg.after(flatreg.sam(0.1), first), oracle, steps=8)
    assert oracle.runs() == 8 - first
    plain = walk(optax.with_extra_args_support(optax.identity()), oracle, steps=8)
    np.testing.assert_array_equal(directions[:first], plain[:first])
    assert not np.allclose(directions[first], plain[first])


def on_steps(probability, key, steps):
    """A boolean per step: whether the method was applied."""
    mark = flatreg.from_direction(lambda grad_fn, params, g: jnp.ones_like(params))
    method, w = flatreg.randomly(mark, probability, key), jnp.zeros(())

    def step(state, _):
        d, state = method.update(w, state, w, grad_fn=lambda w: w)
        return state, d

    return np.asarray(jax.lax.scan(step, method.init(w), length=steps)[1]).astype(bool)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_randomly_applies_the_method_with_its_probability(probability):
    steps = 2000
    on = on_steps(probability, jax.random.key(1), steps)
    deviation = np.sqrt(probability * (1 - probability) / steps)
    assert abs(on.mean() - probability) <= 3 * deviation


def test_randomly_is_reproducible_from_its_key():
    first = on_steps(0.5, jax.random.key(1), 64)
    np.testing.assert_array_equal(on_steps(0.5, jax.random.key(1), 64), first)
    np.testing.assert_array_equal(on_steps(0.5, jax.random.PRNGKey(1), 64), first)
    assert np.any(on_steps(0.5, jax.random.key(2), 64) != first)
    draws = [jax.random.bernoulli(jax.random.fold_in(jax.random.key(1), t)) for t in range(8)]
    np.testing.assert_array_equal(first[:8], draws)
    with pytest.raises(TypeError):
        flatreg.randomly(flatreg.sam(), 0.5)


def test_randomly_follows_a_scheduled_probability():
    on = on_steps(lambda step: jnp.where(step < 5, 0.0, 1.0), jax.random.key(1), 10)
    np.testing.assert_array_equal(on, np.arange(10) >= 5)


def test_randomly_skips_the_oracle_on_off_steps():
    oracle, key = Counter(), jax.random.key(1)
    walk(flatreg.randomly(flatreg.sam(0.1), 0.5, key), oracle, steps=20)
    assert oracle.runs() == on_steps(0.5, key, 20).sum()


@pytest.mark.parametrize(
    ("wrap", "on"),
    [
        (lambda method: flatreg.every(method, 3), [1, 0, 0, 1, 0, 0, 1]),
        (lambda method: flatreg.after(method, 4), [0, 0, 0, 0, 1, 1, 1]),
        (lambda method: flatreg.randomly(method, 0.5, jax.random.key(1)), None),
    ],
    ids=["every", "after", "randomly"],
)
def test_off_steps_do_not_change_the_state_of_the_method(wrap, on):
    """The state of this method is a sum of gradients, which changes only on its own steps."""

    def add_up(grad_fn, params, g, total, *, step):
        return step * jnp.ones_like(params), total + g

    method = wrap(
        flatreg.from_stateful_direction(jnp.zeros_like, add_up, step=lambda step: step + 1.0)
    )
    w, state, total, count = START, method.init(START), np.zeros(3), 0
    on = on_steps(0.5, jax.random.key(1), 7) if on is None else on
    for step, is_on in enumerate(on):
        g = jnp.full(3, 1.0 + step)
        d, state = method.update(g, state, w, grad_fn=jax.grad(loss_fn))
        total, count = total + is_on * g, count + int(is_on)
        np.testing.assert_array_equal(d, count * jnp.ones(3) if is_on else g)
        np.testing.assert_array_equal(state.inner_state.inner, total)
        assert state.inner_state.count == count
