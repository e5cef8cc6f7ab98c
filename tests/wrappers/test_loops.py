"""The wrappers follow their loops, written out by hand in float64, over 20 steps.

In the loops, the clean parameters are a variable of their own, and the optimizer is Optax's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.losses import draw, logistic_loss

STEPS, GROUP, RHO = 20, 3, 0.3
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
# The schedules are float64 here, unlike those of Optax.
BASES = {
    "sgd": lambda: optax.sgd(0.2),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.2),
        optax.sgd(lambda step: 0.3 - 0.01 * step, momentum=0.5),
    ),
}


def bases(*left_out):
    return pytest.mark.parametrize(
        "base",
        [
            pytest.param(make, id=name, marks=[pytest.mark.nightly] * (name == "nesterov"))
            for name, make in BASES.items()
            if name not in left_out
        ],
    )


every_base, with_momentum = bases(), bases("sgd")
ramp = lambda step: 0.1 + 0.02 * step  # noqa: E731

pytestmark = pytest.mark.usefixtures("x64")


def batches(count=STEPS):
    """Batches of eight examples with five features."""
    x = draw(60, count, 8, 5)
    return x, jnp.sign(x.sum(-1) + 2 * draw(61, count, 8))


def start():
    return {"weights": draw(62, 5), "bias": draw(63)}


@jax.jit
def gradient(params, batch):
    return jax.grad(logistic_loss)(params, batch)


def in_order(group=GROUP, visits=2, count=STEPS):
    """The numbers of the batches, in the order that ``revisit`` expects."""
    return list(flatreg.revisited(range(STEPS), group, visits))[:count]


def train(tx, order, params=None):
    """The shifted and the clean parameters after each step, from one jitted scan."""

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, flatreg.eval_params(state, params))

    data = jax.tree.map(lambda x: x[np.array(order)], batches())
    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), data)[1])
    return run(start() if params is None else params)


def uphill(g, scale, params, rho):
    """ρ T²g/‖Tg‖."""
    t = scale(params)
    size = optax.tree.norm(optax.tree.mul(t, g))
    return optax.tree.scale(rho / size, optax.tree.mul(t, optax.tree.mul(t, g)))


def by_hand(base, order, shift_of, params=None):
    """The loop. ``shift_of(t, batch_number, clean, memory, state)`` gives ε before the gradient.

    ``memory`` contains the last gradient of every batch, and under None the last gradient of all.
    """
    clean, memory, points = start() if params is None else params, {}, []
    state, data = base.init(clean), batches()
    update = jax.jit(base.update)
    for t, number in enumerate(order):
        shift = shift_of(t, number, clean, memory, state)
        shifted = clean if shift is None else optax.tree.add(clean, shift)
        points.append((shifted, clean))
        g = gradient(shifted, jax.tree.map(lambda x, i=number: x[i], data))
        memory[number] = memory[None] = g
        updates, state = update(g, state, clean)
        clean = optax.apply_updates(clean, updates)
    return points


def assert_same_trajectory(actual, points):
    """Step t of the wrapper leads to the point of step t + 1 of the loop."""
    shifted, clean = actual
    for t, (expected_shifted, expected_clean) in enumerate(points[1:]):
        for tree, expected in ((shifted, expected_shifted), (clean, expected_clean)):
            for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x[t], y, **CLOSE)


def ones(params):
    return jax.tree.map(jnp.ones_like, params)


def absolute(params):
    return jax.tree.map(lambda w: jnp.abs(w) + 0.1, params)


def revisited_shift(t, number, clean, memory, state, scale=ones, rho=RHO):
    """The last gradient of the same batch."""
    rho = rho(t) if callable(rho) else rho
    return uphill(memory[number], scale, clean, rho) if number in memory else None


def previous_shift(t, number, clean, memory, state, scale=ones, rho=RHO):
    """The gradient of the previous step."""
    rho = rho(t) if callable(rho) else rho
    return uphill(memory[None], scale, clean, rho) if memory else None


def momentum_shift(t, number, clean, memory, state, scale=ones, rho=RHO):
    """Against the momentum, which is zero before the first step."""
    rho = rho(t) if callable(rho) else rho
    (momentum,) = [
        x for name in ("trace", "mu") for _, x in optax.tree.get_all_with_path(state, name)
    ]
    return uphill(momentum, scale, clean, -rho) if memory else None


@every_base
def test_revisit_equals_the_loop(base):
    order = in_order()
    actual = train(flatreg.revisit(base(), RHO, group=GROUP), order)
    assert_same_trajectory(actual, by_hand(base(), order, revisited_shift))


@pytest.mark.parametrize(
    ("group", "visits"),
    [
        (1, 2),
        (2, 3),
        pytest.param(4, 1, marks=pytest.mark.nightly),
        pytest.param(15, 2, marks=pytest.mark.nightly),
    ],
)
def test_revisit_equals_the_loop_for_other_groups(group, visits):
    base, order = optax.sgd(0.1, momentum=0.9), in_order(group, visits)
    actual = train(flatreg.revisit(base, RHO, group=group, visits=visits), order)
    assert_same_trajectory(actual, by_hand(base, order, revisited_shift))


@every_base
def test_previous_gradient_sam_equals_the_loop(base):
    order = range(STEPS)
    actual = train(flatreg.previous_gradient_sam(base(), RHO), order)
    assert_same_trajectory(actual, by_hand(base(), order, previous_shift))


@with_momentum
def test_momentum_sam_equals_the_loop(base):
    order = range(STEPS)
    actual = train(flatreg.momentum_sam(base(), RHO), order)
    assert_same_trajectory(actual, by_hand(base(), order, momentum_shift))


WRAPPERS = {
    "revisit": (functools.partial(flatreg.revisit, group=GROUP), revisited_shift, in_order),
    "previous": (flatreg.previous_gradient_sam, previous_shift, lambda: range(STEPS)),
    "momentum": (flatreg.momentum_sam, momentum_shift, lambda: range(STEPS)),
}
every_wrapper = pytest.mark.parametrize(
    ("wrapper", "shift", "order"), WRAPPERS.values(), ids=WRAPPERS
)


@every_wrapper
def test_scales_and_schedules_act_at_the_shifted_step(wrapper, shift, order):
    base = optax.sgd(0.1, momentum=0.9)
    actual = train(wrapper(base, ramp, scale=absolute), order())
    shift = functools.partial(shift, scale=absolute, rho=ramp)
    assert_same_trajectory(actual, by_hand(base, order(), shift))


@every_wrapper
def test_a_radius_of_zero_is_the_plain_optimizer(wrapper, shift, order):
    base = optax.adamw(0.05, weight_decay=0.1)
    shifted, clean = train(wrapper(base, 0.0), order())
    assert_same_trajectory((shifted, clean), by_hand(base, order(), lambda *_: None))
    jax.tree.map(np.testing.assert_array_equal, shifted, clean)


@every_wrapper
def test_leaves_with_a_factor_of_zero_are_not_shifted(wrapper, shift, order):
    tx = wrapper(optax.sgd(0.1, momentum=0.9), RHO, scale=flatreg.on(lambda path: path == "bias"))
    shifted, clean = train(tx, order())
    np.testing.assert_array_equal(shifted["weights"], clean["weights"])
    assert np.any(shifted["bias"] != clean["bias"])


def test_bfloat16_directions_shift_almost_as_far():
    """The shift itself is rounded and later removed exactly, so the clean parameters are exact."""
    base, order = optax.sgd(0.1, momentum=0.9), in_order()
    tx = flatreg.revisit(base, RHO, group=GROUP, direction_dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(tx.init(start()).directions)} == {
        jnp.dtype("bfloat16")
    }
    shifted, clean = train(tx, order)
    for t, (expected_shifted, expected_clean) in enumerate(
        by_hand(base, order, revisited_shift)[1:]
    ):
        for x, y in ((shifted, expected_shifted), (clean, expected_clean)):
            for name in y:
                np.testing.assert_allclose(x[name][t], y[name], atol=0.02 * RHO)


@pytest.mark.slow
def test_bfloat16_parameters_move_like_float32_ones():
    """Removing the old shift and adding the new one costs no more than the rounding of a step."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start())
    order, base = in_order(), optax.sgd(0.1, momentum=0.9)
    tx = flatreg.revisit(base, RHO, group=GROUP)
    _, clean = train(tx, order, params)
    _, wide = train(tx, order, jax.tree.map(lambda x: x.astype(jnp.float64), params))
    _, plain = train(flatreg.revisit(base, 0.0, group=GROUP), order, params)
    _, wide_plain = train(
        flatreg.revisit(base, 0.0, group=GROUP),
        order,
        jax.tree.map(lambda x: x.astype(jnp.float64), params),
    )

    def error(tree, other):
        return max(
            np.abs(np.asarray(x[-1], float) - np.asarray(y[-1], float)).max()
            for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        )

    assert error(clean, wide) <= 3 * error(plain, wide_plain) + 0.02
