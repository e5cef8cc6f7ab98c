"""R⁰ and R¹ against exact maxima over balls, and under reparametrization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from flatreg import measures
from flatreg.measures.flatness.ball_ascent import ball_around
from tests.support.trained import batch_loss, digits, trained

KEY = jax.random.key(0)
RHO = 0.3


def quadratics(count=100, size=6):
    """H and g of the losses ½wᵀHw + gᵀw: definite, indefinite, and stationary points (g = 0)."""
    random = np.random.default_rng(0)
    for i in range(count):
        a = random.normal(size=(size, size))
        h = a @ a.T / size if i % 3 == 0 else (a + a.T) / 2
        yield h, random.normal(size=size) * (0 if i % 3 == 2 else 10.0 ** random.uniform(-2, 0.5))


def largest_rise(h, g, rho):
    """The maximum of ½dᵀHd + gᵀd over ‖d‖ ≤ ρ, from the secular equation ‖(μI − H)⁻¹g‖ = ρ."""
    values, vectors = np.linalg.eigh(h)
    b = vectors.T @ g
    if not b.any():
        return max(values[-1], 0) * rho**2 / 2
    floor = max(values[-1], 0)

    def excess(mu):
        return np.linalg.norm(b / (mu - values)) - rho

    inside = values[-1] < 0 and np.linalg.norm(b / values) <= rho
    mu = 0.0 if inside else brentq(excess, floor * (1 + 1e-12) + 1e-300, floor + 1e6)
    d = b / (mu - values)
    return values @ d**2 / 2 + b @ d


def both_orders(*args, **options):
    """R⁰ and R¹."""
    zeroth = measures.zeroth_order_flatness(*args, **options)
    return zeroth, measures.first_order_flatness(*args, **options)


@pytest.fixture(scope="module")
def found():
    """The measured R⁰ and R¹ of each quadratic, in float64."""
    with jax.enable_x64(True):

        @jax.jit
        def both(h, g):
            def loss_fn(w):
                return w @ h @ w / 2 + g @ w

            return both_orders(loss_fn, jnp.zeros(6), KEY, RHO, steps=300)

        return [jax.device_get(both(h, g)) for h, g in quadratics()]


def test_zeroth_order_flatness_of_quadratics_is_exact(found):
    exact = [largest_rise(h, g, RHO) for h, g in quadratics()]
    np.testing.assert_allclose([zeroth.value for zeroth, _ in found], exact, rtol=1e-3)


def test_first_order_flatness_of_quadratics_is_exact(found):
    """‖Hd + g‖² = dᵀH²d + 2(Hg)ᵀd + ‖g‖² is a quadratic too."""
    exact = [RHO * np.sqrt(2 * largest_rise(h @ h, h @ g, RHO) + g @ g) for h, g in quadratics()]
    np.testing.assert_allclose([first.value for _, first in found], exact, rtol=1e-3)


def test_the_perturbation_attains_the_value(found):
    """The perturbation is in the ball, and the loss and gradient there give the value."""
    for (h, g), (zeroth, first) in zip(quadratics(), found, strict=True):
        d, e = np.array(zeroth.perturbation), np.array(first.perturbation)
        assert max(np.linalg.norm(d), np.linalg.norm(e)) <= RHO * (1 + 1e-9)
        np.testing.assert_allclose(d @ h @ d / 2 + g @ d, zeroth.value, rtol=1e-9)
        np.testing.assert_allclose(RHO * np.linalg.norm(h @ e + g), first.value, rtol=1e-9)
        assert zeroth.values[zeroth.start] == zeroth.value == max(zeroth.values)


def test_zeroth_order_flatness_is_at_most_first_order(found):
    """R⁰ ≤ R¹, because the loss rises no faster than its gradient allows."""
    assert all(zeroth.value <= first.value * (1 + 1e-5) for zeroth, first in found)


class TestNetwork:
    """The network trained on digits, in float32."""

    loss_fn = measures.dataset_loss(batch_loss, digits(), batch_size=300)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*not a minimum")
    @pytest.mark.parametrize("rho", [0.5, pytest.param(0.1, marks=pytest.mark.nightly)])
    def test_random_starts_find_no_larger_value(self, rho):
        """The default starts reach at least 0.99 of the best of twenty random ones. R⁰ ≤ R¹."""

        @functools.partial(jax.jit, static_argnames="starts")
        def both(key, starts):
            return both_orders(self.loss_fn, trained(), key, rho, random_starts=starts, steps=60)

        zeroth, first = both(KEY, 4)
        for ours, random in zip((zeroth, first), both(jax.random.key(1), 20), strict=True):
            assert ours.value >= 0.99 * max(random.values[-20:])
        assert zeroth.value <= first.value * (1 + 1e-5)

    @pytest.mark.slow
    def test_away_from_a_minimum_a_warning_is_given(self):
        """R¹/ρ² is λ_max only at a minimum."""
        with pytest.warns(UserWarning, match=r"at the scale of ρ = 0.001 .* not a minimum"):
            measures.first_order_flatness(self.loss_fn, trained(), KEY, 1e-3, steps=1)


@pytest.mark.slow
def test_at_a_minimum_first_order_flatness_is_lambda_max():
    """R¹/ρ² = λ_max up to 1% at the minimum of a logistic loss with a ridge penalty."""
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, digits(100))

        def loss_fn(w):  # convex
            x, labels = data
            margins = (2 * (labels % 2) - 1) * (x @ w)
            return jnp.mean(jax.nn.softplus(-margins)) + 0.005 * w @ w

        w = jnp.zeros(64, jnp.float64)
        for _ in range(20):
            w -= jnp.linalg.solve(jax.hessian(loss_fn)(w), jax.grad(loss_fn)(w))
        largest = np.linalg.eigvalsh(jax.hessian(loss_fn)(w))[-1]
        flat = measures.first_order_flatness(loss_fn, w, KEY, 0.01)
        assert flat.gradient_ratio < 1e-2
        np.testing.assert_allclose(flat.value / 0.01**2, largest, rtol=1e-2)


@pytest.mark.slow
def test_adaptive_flatness_is_invariant_under_rescaling():
    """W₁, b₁ → cW₁, cb₁ and W₂ → W₂/c do not change a ReLU network (Dinh et al. 2017).

    They change λ_max and R¹, but not those with T = |w|.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), 4)
        x, y = jax.random.normal(keys[0], (30, 3)), jax.random.normal(keys[1], (30,))
        params = {
            "kernel": jax.random.normal(keys[2], (3, 5)),
            "bias": jnp.linspace(0.1, 1, 5),
            "out": jax.random.normal(keys[3], (5,)),
        }
        rescaled = {k: w / 5 if k == "out" else w * 5 for k, w in params.items()}

        def loss_fn(p):
            return jnp.mean((jax.nn.relu(x @ p["kernel"] + p["bias"]) @ p["out"] - y) ** 2)

        absolute = functools.partial(jax.tree.map, jnp.abs)

        @functools.partial(jax.jit, static_argnames="scale")
        def measured(p, scale=None):
            first = measures.first_order_flatness(loss_fn, p, KEY, 0.1, scale=scale)
            return measures.top_eigenpairs(loss_fn, p, KEY, scale=scale).values[0], first.value

        np.testing.assert_allclose(loss_fn(params), loss_fn(rescaled), rtol=1e-12)
        np.testing.assert_allclose(
            measured(params, scale=absolute), measured(rescaled, scale=absolute), rtol=1e-4
        )
        moved = np.divide(measured(rescaled), measured(params))
        assert np.all(np.abs(np.log(moved)) > 0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not a minimum")
def test_both_orders_together_equal_each_alone():
    loss_fn = lambda w: jnp.sum(jnp.cos(w) + 0.3 * w**2)  # noqa: E731

    @jax.jit
    def together_and_alone(w):
        args = loss_fn, w, KEY, 0.5
        together = measures.zeroth_and_first_order_flatness(*args, steps=20)
        return together, both_orders(*args, steps=20)

    together, alone = together_and_alone(jnp.arange(3.0))
    for x, y in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_constant_and_linear_losses_are_exact():
    """R⁰ = R¹ = 0 for a constant loss, and ρ times the slope for a linear one."""
    for measure in (measures.zeroth_order_flatness, measures.first_order_flatness):

        def value(loss_fn, measure=measure):
            return jax.jit(lambda w: measure(loss_fn, w, KEY, 0.1).value)(jnp.ones(3))

        assert value(lambda w: 0.0 * jnp.sum(w)) == 0
        np.testing.assert_allclose(value(lambda w: 2 * w[0]), 0.2, rtol=1e-5)


@pytest.mark.slow
def test_the_highest_point_of_an_ascent_counts_not_the_last():
    """From the start at w = 1 the ascent steps over the peak at 0.9, and ends at w = −1."""
    loss_fn = lambda w: jnp.sum(jnp.exp(-50 * (w - 0.9) ** 2) - 0.1 * w)  # noqa: E731
    found = measures.zeroth_order_flatness(loss_fn, jnp.zeros(1), KEY, 1.0, steps=1)
    np.testing.assert_allclose(found.value, np.exp(-0.5) - 0.1, rtol=1e-5)
    np.testing.assert_allclose(found.perturbation, [1], rtol=1e-5)
    rises = {float(loss_fn(w) - loss_fn(jnp.zeros(1))) for w in (jnp.ones(1), -jnp.ones(1))}
    np.testing.assert_allclose(min(rises), 0.1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not a minimum")
def test_the_way_to_the_highest_point_is_searched_for_steepness():
    """A step of the loss at w = 0.5 is invisible from the boundary, where all ascents start."""
    loss_fn = lambda w: jnp.sum(0.1 * w + jnp.tanh((w - 0.5) / 0.01))  # noqa: E731
    zeroth, first = both_orders(loss_fn, jnp.zeros(1), KEY, 1.0, steps=5)
    np.testing.assert_allclose(zeroth.value, 0.1 + 2, rtol=1e-5)
    np.testing.assert_allclose(first.value, 0.1 + 1 / 0.01, rtol=1e-5)
    assert first.start == 3
    assert np.delete(first.values, 3).max() < zeroth.value <= first.value


@pytest.mark.slow
@pytest.mark.nightly_except("1e+20")
@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_flatness_does_not_overflow_or_underflow(size):
    """For size·‖w‖²/2 at w = (1, 1, 1): R⁰ = size(√3 ρ + ρ²/2) and R¹ = size·ρ(√3 + ρ)."""
    loss_fn = lambda w: size * (jnp.sum(w**2) / 2)  # noqa: E731
    for measure, expected in (
        (measures.zeroth_order_flatness, 3**0.5 * 0.1 + 0.1**2 / 2),
        (measures.first_order_flatness, 0.1 * (3**0.5 + 0.1)),
    ):
        found = jax.jit(lambda w, f=measure: f(loss_fn, w, KEY, 0.1, steps=5).value)(jnp.ones(3))
        np.testing.assert_allclose(found / np.float32(size), expected, rtol=1e-4)


@pytest.mark.nightly_except("minimum", "bowl")
@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (lambda w: w[0] + 2 * w[1], np.inf),
        (lambda w: 0 * w[0], 0),
        (lambda w: jnp.sum(w**2), 0),
        (lambda w: jnp.sum((w - 1) ** 2), 2**0.5 / 0.1),
    ],
    ids=["slope", "constant", "minimum", "bowl"],
)
def test_the_gradient_ratio_is_zero_only_at_a_stationary_point(loss_fn, expected):
    """‖g‖/(ρ|λ|max): infinite without curvature, zero without a gradient."""
    found = jax.jit(lambda w: measures.first_order_flatness(loss_fn, w, KEY, 0.1, steps=1))
    np.testing.assert_allclose(found(jnp.zeros(2)).gradient_ratio, expected, rtol=1e-5)


def test_the_ascents_follow_the_gradients_of_their_heights():
    """The gradient of ½‖T∇L(θ+Tδ)‖² contains the Hessian at θ+Tδ, not the one at θ."""
    loss_fn = lambda w: jnp.sum(jnp.sin(w)) * w[0] + jnp.sum(w**4)  # noqa: E731
    scale = lambda w: jnp.abs(w) + 0.5  # noqa: E731
    ball = ball_around(loss_fn, jnp.array([0.5, -0.3, 1.0]), KEY, 0.5, 1, 0, None, scale)
    delta = jnp.array([0.3, 0.2, -0.2])
    slope_at = jax.grad(lambda delta: ball.rise(delta)[0])
    slope = ball.rise(delta)[1]
    np.testing.assert_allclose(slope, slope_at(delta), rtol=1e-4)
    uphill = jax.grad(lambda delta: jnp.sum(slope_at(delta) ** 2) / 2)(delta)
    np.testing.assert_allclose(ball.product(delta, slope), uphill, rtol=1e-4)


@pytest.mark.parametrize("measure", ["zeroth_order_flatness", "first_order_flatness"])
def test_errors_name_the_argument(measure):
    measure = functools.partial(getattr(measures, measure), lambda w: jnp.sum(w**2))
    with pytest.raises(ValueError, match="rho must be finite and at least 0, got -1"):
        measure(jnp.ones(3), KEY, -1.0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        measure(jnp.ones(3), KEY, 0.1, steps=0)
    with pytest.raises(TypeError, match="leaf of dtype int32"):
        measure(jnp.arange(3), KEY, 0.1)
