"""Training of a trial: against NumPy, its cost in gradients, and its batches."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.trials import contender as costs
from benchmarks.frontier.trials import slide
from benchmarks.frontier.trials.contender import Contender
from benchmarks.frontier.trials.contenders import ABLATION, CONTENDERS, KNOWN, named, revisited
from benchmarks.frontier.trials.training import batches
from benchmarks.frontier.tuning import Range
from flatreg.linen import TrainState
from tests.support.networks.softmax_regression import (
    BATCH_SIZE,
    EXAMPLES,
    Linear,
    by_hand,
    data,
    program,
)

# Methods of which a step does not always cost the same, and the most expensive one.
CHANGING = (
    *("sam:every=5", "sam:ascent_fraction=0.1", "sam:tail=0.2", "looksam:k=5"),
    "gam_accelerated",
)
VALUES = {"learning_rate": 0.3, "weight_decay": 0.05, "horizon": 0.2}


def kernel_and_bias(variables):
    return variables["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["bias"]


@pytest.mark.parametrize("warmup", [pytest.param(0.0, marks=pytest.mark.nightly), 0.3])
def test_plain_training_and_its_average_match_numpy(warmup):
    """One program serves several numbers of steps, seeds and values."""
    x, y = map(jnp.asarray, data())
    plain = program(CONTENDERS[PLAIN], warmup=warmup)
    for steps, seed in ((7, 0), (12, 3)):
        path = by_hand(VALUES, steps, seed, warmup=warmup)
        trained = plain(VALUES, steps, seed, x, y, EXAMPLES)
        assert not trained.diverged
        for found, expected in zip(kernel_and_bias(trained.variables), path[-1], strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    average = program(CONTENDERS["ema"], warmup=warmup)
    decay = np.exp(-1 / (VALUES["horizon"] * steps))
    weights = decay ** np.arange(steps - 1, -1, -1)
    averaged = average(VALUES, steps, seed, x, y, EXAMPLES)
    for i, found in enumerate(kernel_and_bias(averaged.variables)):
        expected = np.average([params[i] for params in path], axis=0, weights=weights)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_a_training_that_overflows_has_diverged():
    x, y = map(jnp.asarray, data())
    plain = program(CONTENDERS[PLAIN])
    assert plain(VALUES | {"learning_rate": 1e38}, 12, 0, x, y, EXAMPLES).diverged


@pytest.mark.parametrize(
    "name",
    [
        name if name in CHANGING else pytest.param(name, marks=pytest.mark.nightly)
        for name in CONTENDERS
    ],
)
def test_a_training_takes_the_gradients_that_it_declares(name):
    """Counts the examples of all forward passes with a batch, which each gradient has one of."""
    contender = CONTENDERS[name]
    seen = collections.Counter()

    def saw(examples):
        seen[examples] += 1

    x, y = map(jnp.asarray, data())
    train = program(contender, Linear(saw))
    values = {name: range_.low for name, range_ in contender.tuned.items()} | VALUES
    for budget in (11.0, 20.5):
        steps = costs.affordable_steps(contender, budget)
        assert costs.gradients(contender, steps) <= budget + 1e-9
        assert costs.gradients(contender, steps + 1) > budget
        seen.clear()
        train(values, steps, 0, x, y, EXAMPLES)
        jax.effects_barrier()
        counted = sum(size * count for size, count in seen.items() if size > 1) / BATCH_SIZE
        assert counted == pytest.approx(costs.gradients(contender, steps))


def test_costs_of_a_thousand_gradients():
    """The declared costs by hand, for the rows whose number of gradients changes with the step."""
    steps = {name: costs.affordable_steps(one, 1000) for name, one in CONTENDERS.items()}
    assert steps["plain"] == steps["ema"] == 1000
    assert steps["revisit"] == steps["momentum_sam"] == steps["previous_gradient_sam"] == 1000
    assert steps["sam"] == steps["penalized_gradient"] == 500
    assert steps["gsam"] == steps["friendly_sam"] == steps["stable_sam"] == 500
    assert steps["gam_accelerated"] == 250
    assert steps["sam:every=5"] == 833  # 833 + 167
    assert steps["looksam:k=5"] == 833
    assert steps["sam:ascent_fraction=0.1"] == 909  # 1.1 · 909 = 999.9
    assert steps["sam:tail=0.2"] == 833  # 833 + 167


def test_a_tail_begins_at_the_last_steps():
    tail = Contender(lambda: None, 2.0, tail=0.2)
    assert costs.first_step(tail, 10) == 8
    assert costs.first_step(tail, 11) == 8
    assert costs.first_step(Contender(), 10) == 0


def test_batches_are_shuffled_epochs_of_known_examples():
    order = batches(Contender(), 8, 5, BATCH_SIZE, EXAMPLES)
    assert order.shape == (8, BATCH_SIZE)
    for first in (0, 3):  # three full batches per epoch
        epoch = order[first : first + 3].ravel()
        assert len(set(epoch)) == 3 * BATCH_SIZE
        assert epoch.max() < EXAMPLES
    assert (order[:3] != order[3:6]).any()
    assert (order != batches(Contender(), 8, 6, BATCH_SIZE, EXAMPLES)).any()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param("revisit", 4, marks=pytest.mark.nightly),
        ("momentum_sam", 1),
        ("previous_gradient_sam", 1),
    ],
)
def test_wrappers_begin_with_plain_steps_and_lose_their_shift(name, steps):
    """Until the first shift they train as the plain optimizer does, and the shift is removed.

    The steps of `revisit` are those of the first group.
    """
    x, y = map(jnp.asarray, data())
    values = VALUES | {"rho": 1.0}
    found = program(CONTENDERS[name])(values, steps, 0, x, y, EXAMPLES)
    expected = by_hand(VALUES, steps, 0)[-1]
    for one, other in zip(kernel_and_bias(found.variables), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_revisit_sees_groups_of_batches_twice(count):
    order = np.arange(2 * count).reshape(count, 2)
    found = revisited(order)
    assert len(found) >= count
    groups = found.reshape(-1, 2, 4, 2)  # group, visit, batch, example
    np.testing.assert_array_equal(groups[:, 0], groups[:, 1])
    np.testing.assert_array_equal(groups[:, 0].reshape(-1, 2)[:count], order)


def test_variants_of_revisit_see_the_batches_that_they_name():
    def numbers(**options):
        return revisited(np.arange(16).reshape(16, 1), **options).ravel()[:16].tolist()

    assert numbers(group=2, visits=3)[:8] == [0, 1, 0, 1, 0, 1, 2, 3]
    assert numbers(roll=1)[:10] == [0, 1, 2, 3, 1, 2, 3, 0, 4, 5]
    assert numbers(tail=0.5) == [*range(12), *range(8, 12)]
    halves = slide.sliding(np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(halves[:3], [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]])
    assert tuple(named("ablation")) == ABLATION


def test_the_radius_follows_the_tail_and_the_learning_rate():
    def radii(**settings):
        contender = Contender(
            tuned={"rho": Range(0.1, 1.0)}, wrapper=lambda base, values: values["rho"], **settings
        )
        first = costs.first_step(contender, 8)
        radius = costs.optimizer(contender, "sgd", VALUES | {"rho": 2.0}, 8, first, 0.0)
        return [float(radius(jnp.int32(step))) for step in range(8)]

    assert radii(tail=0.5) == [0.0] * 4 + [2.0] * 4
    falling = [1 + np.cos(np.pi * t / 8) for t in range(8)]
    assert radii(decaying=True) == pytest.approx(falling, rel=1e-4)


@pytest.mark.slow
@pytest.mark.nightly
def test_slide_climbs_along_the_half_that_is_seen_again():
    """Two steps by hand, without momentum: it takes 0.9 of the first step once more."""
    x, y = map(jnp.asarray, data())
    values = {"learning_rate": 0.3, "weight_decay": 0.0, "rho": 0.5}
    contender = KNOWN["slide"]
    train = program(contender)
    one = train(values, 1, 0, x, y, EXAMPLES).variables["params"]["Dense_0"]
    state = TrainState.init(Linear(), optax.sgd(0.1), jax.random.key(0), x[:1], train=False)
    start = state.params["Dense_0"]
    (batch,) = batches(contender, 1, 0, BATCH_SIZE, EXAMPLES)

    def gradient(params, rows):
        def loss(params):
            logits = x[rows] @ params["kernel"] + params["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        return jax.grad(loss)(params)

    moved = jax.tree.map(lambda w, g: w - 0.3 * g, start, gradient(start, batch))
    for name in one:
        np.testing.assert_allclose(one[name], moved[name], rtol=2e-5, atol=2e-6)
    first, second = batches(contender, 2, 0, BATCH_SIZE, EXAMPLES)
    np.testing.assert_array_equal(first[BATCH_SIZE // 2 :], second[: BATCH_SIZE // 2])
    along = gradient(start, first[BATCH_SIZE // 2 :])
    shift = jax.tree.map(lambda g: 0.5 * g / optax.tree.norm(along), along)
    whole = gradient(start, first)
    clean = jax.tree.map(lambda w, g: w - 0.3 * g, start, whole)
    ahead = gradient(optax.tree.add(clean, shift), second)
    rate = 0.15  # half of the cosine schedule over two steps
    expected = jax.tree.map(lambda w, a, g: w - rate * (a + 0.9 * g), clean, ahead, whole)
    two = train(values, 2, 0, x, y, EXAMPLES).variables["params"]["Dense_0"]
    for name in two:
        np.testing.assert_allclose(two[name], expected[name], rtol=2e-5, atol=2e-6)


def test_a_wrapper_orders_batches_and_chooses_what_is_evaluated():
    """The fields for methods that wrap the optimizer: here it halves the learning rate."""

    def wrapper(base, values):
        return optax.chain(base, optax.scale(values["factor"]))

    contender = Contender(
        tuned={"factor": Range(0.1, 1.0)},
        wrapper=wrapper,
        arrange=lambda order: order[::-1],
        evaluated=lambda opt_state, params: jax.tree.map(lambda p: 2 * p, params),
    )
    assert costs.gradients(contender, 10) == 10
    x, y = map(jnp.asarray, data())
    order = batches(contender, 3, 0, BATCH_SIZE, EXAMPLES)
    np.testing.assert_array_equal(order, batches(Contender(), 3, 0, BATCH_SIZE, EXAMPLES)[::-1])
    values = VALUES | {"factor": 0.5}
    found = program(contender)(values, 1, 0, x, y, EXAMPLES)
    plain = program(Contender(arrange=lambda order: order[::-1]))
    halved = plain(VALUES | {"learning_rate": 0.15}, 1, 0, x, y, EXAMPLES)
    for one, other in zip(
        kernel_and_bias(found.variables), kernel_and_bias(halved.variables), strict=True
    ):
        np.testing.assert_allclose(one, 2 * other, rtol=1e-6)
