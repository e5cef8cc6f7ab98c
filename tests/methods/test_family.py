"""The methods related to SAM follow their papers' loops, written out by hand in float64.

The registry tests the first step. Here are 20 steps on minibatches, with states, schedules and the
optimizers that come after the method.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.methods.test_costs import Counter, walk
from tests.support.losses import PROBLEMS, direction_of, draw, flat, logistic_loss

STEPS = 20
RHO = 0.3
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.2),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(0.3, momentum=0.5)),
}
every_optimizer = pytest.mark.parametrize(
    "base",
    [
        pytest.param(make, id=name, marks=[pytest.mark.nightly] * (name in ("sgd", "momentum")))
        for name, make in OPTIMIZERS.items()
    ],
)

pytestmark = pytest.mark.usefixtures("x64")


def batches():
    """One batch of eight examples with five features per step."""
    x = draw(60, STEPS, 8, 5)
    return x, jnp.sign(x.sum(-1) + 2 * draw(61, STEPS, 8))


def gradient(w, batch):
    """The gradient of the logistic loss at the vector (weights, bias)."""
    loss = lambda w: logistic_loss({"weights": w[:5], "bias": w[5]}, batch)  # noqa: E731
    return jax.grad(loss)(w)


def start():
    return draw(62, 6)


def trajectory(method, base):
    """The parameters after each of 20 steps with the method before the optimizer."""
    tx = optax.chain(method, base)

    def step(carry, batch):
        w, state = carry
        grad_fn = functools.partial(gradient, batch=batch)
        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    run = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), batches())[1])
    return run(start())


def by_hand(direction, base):
    """The same with ``direction(t, w, grad, g, memory) -> d, memory``, in a Python loop."""
    w, memory, points = start(), None, []
    state, grad_on = base.init(w), jax.jit(gradient)
    for t in range(STEPS):
        grad = functools.partial(grad_on, batch=jax.tree.map(lambda x, t=t: x[t], batches()))
        d, memory = direction(t, w, grad, grad(w), memory)
        updates, state = base.update(d, state, w)
        w = optax.apply_updates(w, updates)
        points.append(w)
    return np.array(points)


def unit(x):
    return x / jnp.linalg.norm(x)


def gsam(t, w, grad, g, memory):
    ahead = grad(w + RHO * unit(g))
    return ahead - 0.4 * (g - (g @ unit(ahead)) * unit(ahead)), memory


def stable_sam(t, w, grad, g, memory):
    return jnp.linalg.norm(g) * unit(grad(w + RHO * unit(g))), memory


def friendly_sam(t, w, grad, g, average):
    """As in the authors' code: the first step sets the average and does not subtract it."""
    if average is None:
        return grad(w + RHO * unit(g)), g
    return grad(w + RHO * unit(g - 0.5 * average)), 0.9 * average + 0.1 * g


def looksam(t, w, grad, g, component):
    if t % 4 == 0:
        ahead = grad(w + RHO * unit(g))
        return ahead, ahead - (ahead @ unit(g)) * unit(g)
    return g + 0.7 * jnp.linalg.norm(g) * unit(component), component


def adaptive_sam(t, w, grad, g, moments):
    """AE-SAM with λ₁ = −1, λ₂ = 1 and T = 20."""
    mean, variance = (0.0, np.exp(-10)) if moments is None else moments
    square = float(g @ g)
    mean = 0.9 * mean + 0.1 * square
    variance = 0.9 * variance + 0.1 * (square - mean) ** 2
    threshold = -t / STEPS + (1 - t / STEPS)
    is_sharp = square >= mean + threshold * np.sqrt(variance)
    return grad(w + RHO * unit(g)) if is_sharp else g, (mean, variance)


def loss_equated(t, w, grad, g, memory):
    """LE-SAM with σₜ = 0.3 · 0.9ᵗ and ρ_max = 0.5."""
    return grad(w + min(0.3 * 0.9**t / float(jnp.linalg.norm(g)), 0.5) * unit(g)), memory


AE_THRESHOLD = lambda step: 1 - 2 * step / STEPS  # noqa: E731

PAPERS = {
    "when_sharp": (lambda: flatreg.when_sharp(flatreg.sam(RHO), AE_THRESHOLD), adaptive_sam),
    "le_sam": (lambda: flatreg.sam(0.5, loss_increase=lambda t: 0.3 * 0.9**t), loss_equated),
    "gsam": (lambda: flatreg.gsam(RHO, 0.4), gsam),
    "stable_sam": (lambda: flatreg.stable_sam(RHO), stable_sam),
    "friendly_sam": (lambda: flatreg.friendly_sam(RHO, 0.5), friendly_sam),
    "looksam": (lambda: flatreg.looksam(RHO, k=4), looksam),
}


@pytest.mark.nightly_except("gsam-adamw", "looksam-adamw", "friendly_sam-adamw")
@every_optimizer
@pytest.mark.parametrize(("method", "paper"), PAPERS.values(), ids=PAPERS)
def test_twenty_steps_equal_the_loop_of_the_paper(method, paper, base):
    np.testing.assert_allclose(trajectory(method(), base()), by_hand(paper, base()), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_looksam_computes_the_second_gradient_every_k_steps(k):
    oracle = Counter()
    with jax.enable_x64(False):
        jax.jit(lambda: walk(flatreg.looksam(0.1, k), oracle, steps=10))()
    assert oracle.runs() == -(-10 // k)
    assert oracle.traced == 1


def test_the_averages_of_when_sharp_include_the_current_gradient():
    """With the averages of the step before, the choice would differ on some steps."""
    mark = flatreg.from_direction(lambda grad_fn, params, g: jnp.full_like(params, 7.0))
    method = flatreg.when_sharp(mark, 1.0, decay=0.5)
    norms = np.exp(np.random.default_rng(0).normal(size=60) / 2)

    def step(state, g):
        d, state = method.update(g, state, g, grad_fn=lambda w: w)
        return state, d == 7.0

    chosen = jax.lax.scan(step, method.init(jnp.zeros(())), jnp.asarray(norms))[1]
    mean, variance, expected, late = 0.0, np.exp(-10), [], []
    for square in norms**2:
        late.append(square >= mean + np.sqrt(variance))
        mean = 0.5 * mean + 0.5 * square
        variance = 0.5 * variance + 0.5 * (square - mean) ** 2
        expected.append(square >= mean + np.sqrt(variance))
    assert expected != late
    np.testing.assert_array_equal(chosen, expected)


def test_when_sharp_applies_the_method_on_some_steps_only():
    oracle = Counter()
    method = flatreg.when_sharp(flatreg.sam(0.1), 0.0, decay=0.5)

    def step(carry, batch):
        w, state = carry
        g = gradient(w, batch)
        d, state = method.update(g, state, w, grad_fn=oracle)
        return (w - 0.1 * d, state), jnp.sum(g**2)

    squares = jax.jit(lambda w: jax.lax.scan(step, (w, method.init(w)), batches())[1])(start())
    mean, on = 0.0, 0
    for square in squares:
        mean = 0.5 * mean + 0.5 * square
        on += square >= mean
    assert oracle.runs() == on
    assert 2 < on < STEPS - 2


def test_the_loss_increase_bounds_the_first_order_increase():
    w = start()
    g = gradient(w, jax.tree.map(lambda x: x[0], batches()))
    size = float(jnp.linalg.norm(g))
    for sigma, rho, expected in ((0.1, 9.0, 0.1 / size), (0.1, 0.01, 0.01), (0.0, 1.0, 0.0)):
        method = flatreg.sam(rho, loss_increase=sigma)
        moved, _ = method.update(g, method.init(w), w, grad_fn=lambda point: point)
        np.testing.assert_allclose(jnp.linalg.norm(moved - w), expected, rtol=1e-9)
    method, zero = flatreg.sam(1.0, loss_increase=0.1), jnp.zeros(6)
    moved, _ = method.update(zero, method.init(w), w, grad_fn=lambda point: point)
    np.testing.assert_array_equal(moved, w)
    with pytest.raises(ValueError, match="loss_increase must be finite and at least 0"):
        flatreg.sam(loss_increase=-0.1)


def test_looksam_without_its_component_is_sam_every_k_steps():
    base = optax.sgd(0.2)
    looking = trajectory(flatreg.looksam(RHO, k=4, alpha=0.0), base)
    np.testing.assert_allclose(
        looking, trajectory(flatreg.every(flatreg.sam(RHO), 4), base), rtol=1e-12
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda make: make.__name__)
def test_coupled_wsam_is_the_penalized_gradient(problem):
    """WSAM descends (1 − 2γ)/(1 − γ) L(θ) + γ/(1 − γ) L(θ + sg(ρĝ))."""
    gamma, (params, loss) = 0.6, problem()
    w, loss_of = problem().vector, problem().loss_of_vector
    shift = RHO * unit(jax.grad(loss_of)(w))
    weighted = lambda w: (  # noqa: E731
        (1 - 2 * gamma) / (1 - gamma) * loss_of(w) + gamma / (1 - gamma) * loss_of(w + shift)
    )
    d = direction_of(flatreg.penalized_gradient(RHO, gamma / (1 - gamma)), loss, params)
    np.testing.assert_allclose(flat(d), jax.grad(weighted)(w), rtol=1e-9)


@pytest.mark.parametrize("method", [flatreg.friendly_sam(RHO, 1.0), flatreg.looksam(RHO, 2)])
def test_states_keep_no_value_that_is_not_finite(method):
    """A step that ``optax.apply_if_finite`` skips leaves the state of the method finite."""
    w, state = start(), method.init(start())
    bad = lambda w: jnp.full(6, jnp.nan)  # noqa: E731
    d, state = method.update(bad(w), state, w, grad_fn=bad)
    assert jnp.all(jnp.isnan(d))
    assert jnp.all(jnp.isfinite(flat(state.inner)))


class TestRadiusSchedule:
    """``radius_schedule`` ties the radius to the learning rate."""

    def test_radius_follows_the_learning_rate_linearly(self):
        learning_rate = optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 20, 0.01)
        rho = flatreg.radius_schedule(
            learning_rate, 0.4, 0.1, learning_rate_max=0.3, learning_rate_min=0.05
        )
        for step in range(20):
            eta = min(max(float(learning_rate(step)), 0.05), 0.3)
            expected = 0.1 + 0.3 * (eta - 0.05) / 0.25
            np.testing.assert_allclose(rho(step), expected, rtol=1e-6)
        assert (rho(0), rho(5)) == (pytest.approx(0.1), pytest.approx(0.4))

    @pytest.mark.parametrize("rate", [0.1, None, optax.sgd(0.1)])
    def test_the_learning_rate_must_be_a_schedule(self, rate):
        with pytest.raises(TypeError, match=r"optax schedule.*radius_schedule\(optax\.cosine"):
            flatreg.radius_schedule(rate, 0.1, learning_rate_max=0.1)

    def test_an_empty_range_of_learning_rates_raises(self):
        for rate in (0.1, np.float32(0.1)):
            with pytest.raises(ValueError, match=r"learning_rate_max must be .*write rho=0\.1"):
                flatreg.radius_schedule(
                    optax.constant_schedule(0.1),
                    0.1,
                    learning_rate_max=rate,
                    learning_rate_min=rate,
                )
