"""What finite steps add to gradient descent: theorems on small losses, in float64.

The product loss ½(y − abx)² has a curve of minima ab = y/x with the curvature x²(a² + b²). At which
of them a descent ends shows how it was regularized. The imbalance Δ = a² − b² is a constant of the
flow.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import measures
from tests.support.losses import draw, network

START = np.array([2.8, 3.5])
STEPS = np.array([5e-4, 1e-3, 2e-3, 4e-3])
SIGNS = np.array([1, -1])

pytestmark = pytest.mark.usefixtures("x64")


def product(w, x=1.0, y=0.6):
    return (y - w[0] * w[1] * x) ** 2 / 2


def plain(h):
    return product


def modified(h):
    return measures.modified_loss(product, h)


def descent(h, steps, loss=product):
    """The parameters after some steps of gradient descent."""
    step = lambda w, _: (w - h * jax.grad(loss)(w), None)  # noqa: E731
    return jax.lax.scan(step, jnp.asarray(START), length=steps)[0]


def flow(loss, time, steps):
    """The parameters on the gradient flow at some time."""
    return measures.gradient_flow(loss, jnp.asarray(START), [time], steps_between=steps)[0]


def final_curvature(loss):
    """a² + b² at the end of the flow, with small steps where it is steep at first."""
    w = measures.gradient_flow(loss, jnp.asarray(START), [1.0, 20.0], steps_between=5000)
    return float(w[-1] @ w[-1])


def slope_of_error(loss_of, steps, time=None):
    """The order in h of the distance between gradient descent and a flow, by least squares.

    After one step, or at a fixed time.
    """
    errors = [
        jnp.linalg.norm(descent(h, 1) - flow(loss_of(h), h, 100))
        if time is None
        else jnp.linalg.norm(descent(h, round(time / h)) - flow(loss_of(h), time, 1000))
        for h in steps
    ]
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


class TestProductLoss:
    """The published example: the ends of descents and flows from (2.8, 3.5)."""

    def test_the_flow_of_the_loss_ends_at_the_closed_form(self):
        """ab = y and a² − b² = Δ give (a² + b²)² = Δ² + 4y²."""
        expected = np.sqrt((START**2 @ SIGNS) ** 2 + 4 * 0.6**2)
        assert abs(expected - 4.570) < 1e-3
        assert final_curvature(product) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(("h", "expected"), [(0.001, 4.556), (0.025, 4.182), (0.05, 3.605)])
    def test_gradient_descent_ends_flatter_with_larger_steps(self, h, expected):
        w = descent(h, round(20 / h))
        assert float(w @ w) == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize(("mu", "expected"), [(0.0125, 4.099), (0.05, 3.584), (0.5, 3.006)])
    def test_the_flow_ends_flatter_with_a_larger_penalty(self, mu, expected):
        """L + μ‖∇L‖² is the modified loss of h = 4μ."""
        assert final_curvature(modified(4 * mu)) == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("h", [0.001, 0.005])
    def test_gradient_descent_follows_the_flow_of_the_modified_loss(self, h):
        """That flow explains all but 7% of the curvature that finite steps remove."""
        w = descent(h, round(20 / h))
        missed = abs(float(w @ w) - final_curvature(modified(h)))
        assert missed < 0.07 * (final_curvature(product) - float(w @ w))

    @pytest.mark.parametrize(("h", "expected"), [(0.025, 4.289), (0.05, 4.099)])
    def test_the_truncation_fails_at_large_steps(self, h, expected):
        """The flow of L̃ then ends with a curvature that is too large by more than 0.1."""
        w, curvature = descent(h, round(20 / h)), final_curvature(modified(h))
        assert curvature == pytest.approx(expected, abs=1e-3)
        assert curvature - float(w @ w) > 0.1

    @pytest.mark.parametrize("h", [0.001, 0.05])
    def test_a_step_shrinks_the_imbalance(self, h):
        """Δ′ = Δ(1 − h²e²x²) exactly, with the residual e = y − abx."""
        x, y = 1.3, 0.6
        w = descent(h, 1, lambda w: product(w, x, y))
        before, after = START**2 @ SIGNS, np.asarray(w) ** 2 @ SIGNS
        error = y - START.prod() * x
        np.testing.assert_allclose(after, before * (1 - h**2 * error**2 * x**2), rtol=1e-12)

    def test_the_flow_conserves_the_imbalance(self):
        times = [0.0, 0.01, 0.1, 1.0]
        w = measures.gradient_flow(product, jnp.asarray(START), times, steps_between=1000)
        np.testing.assert_array_equal(w[0], START)
        np.testing.assert_allclose(w**2 @ SIGNS, START**2 @ SIGNS, rtol=1e-10)

    def test_the_flow_of_the_modified_loss_shrinks_the_imbalance(self):
        """Δ̇ = −hx²e²Δ along −∇L̃. With minibatches of one example, x²e² is a mean over them."""
        h, x, y = 0.1, np.array([1.3, -0.4, 0.8]), np.array([0.6, 1.0, -0.2])
        rates = x**2 * (y - START.prod() * x) ** 2
        one = lambda w, batch: product(w, *batch)  # noqa: E731
        losses = {
            measures.modified_loss(lambda w: product(w, x[0], y[0]), h): rates[0],
            measures.modified_minibatch_loss(one, h, (x, y)): rates.mean(),
        }
        for loss, rate in losses.items():
            decline = -2 * SIGNS @ (START * jax.grad(loss)(jnp.asarray(START)))
            np.testing.assert_allclose(decline, -h * rate * (START**2 @ SIGNS), rtol=1e-12)


class TestOrders:
    """How fast the distance from gradient descent to the flows vanishes as h goes to zero."""

    @pytest.mark.parametrize(("loss_of", "order"), [(plain, 1.97), (modified, 2.96)])
    def test_one_step(self, loss_of, order):
        """Order 2 for the flow of L, and 3 for that of L̃."""
        assert slope_of_error(loss_of, STEPS) == pytest.approx(order, abs=0.1)

    @pytest.mark.parametrize(("loss_of", "order"), [(plain, 1), (modified, 2)])
    def test_a_fixed_time(self, loss_of, order):
        """Order 1 for the flow of L, and 2 for that of L̃."""
        assert slope_of_error(loss_of, STEPS, time=0.5) == pytest.approx(order, abs=0.05)

    @pytest.mark.slow
    @pytest.mark.nightly_except("True-3")
    @pytest.mark.parametrize(("modify", "order"), [(False, 2), (True, 3)])
    def test_the_mean_over_all_orders_of_an_epoch(self, modify, order):
        """Order 2 for the flow of L, and 3 for that of L̃, over one epoch of three minibatches."""
        x, y = draw(0, 3, 4, 2), draw(1, 3, 4)  # three minibatches of four
        loss_fn = lambda w, batch: jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2)  # noqa: E731
        steps, start = STEPS * 4, jnp.array([0.7, -0.4])
        errors = []
        for h in steps:
            ends = []
            for order_of_batches in itertools.permutations(range(3)):
                w = start
                for k in order_of_batches:
                    w = w - h * jax.grad(loss_fn)(w, (x[k], y[k]))
                ends.append(w)
            loss = measures.modified_minibatch_loss(loss_fn, h if modify else 0.0, (x, y))
            exact = measures.gradient_flow(loss, start, [3 * h], steps_between=10)[0]
            errors.append(np.linalg.norm(np.mean(ends, axis=0) - exact))
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)

    def test_one_step_on_a_quadratic(self):
        """The error is (ha)²/2 for the flow of L, and (ha)³/3 in the generator for that of L̃."""
        a, h = jnp.array([0.5, 2.0, 3.0]), 1e-3
        loss = lambda w: jnp.sum(a * w**2) / 2  # noqa: E731
        ends = [
            measures.gradient_flow(f, jnp.ones(3), [h], steps_between=20)[0]
            for f in (loss, measures.modified_loss(loss, h))
        ]
        np.testing.assert_allclose(ends[0] - (1 - h * a), (h * a) ** 2 / 2, rtol=2e-3)
        np.testing.assert_allclose(
            jnp.log(ends[1]) - jnp.log1p(-h * a), (h * a) ** 3 / 3, rtol=3e-3
        )

    def test_runge_kutta_is_of_fourth_order(self):
        """Twice the steps, a 16th of the error against the exponential."""
        a, times = jnp.array([0.5, 2.0]), np.array([0.3, 1.0, 1.0, 2.5])
        exact = np.exp(-times[:, None] * a)
        flow = partial(measures.gradient_flow, lambda w: a * w @ w / 2, jnp.ones(2), times)
        off = [np.abs(flow(steps_between=n) - exact).max() for n in (8, 16, 200)]
        assert off[0] / off[1] == pytest.approx(16, rel=0.2)
        assert off[2] < 1e-9


@pytest.mark.slow
def test_the_penalty_is_the_rate_times_the_regularizer():
    """L̃ − L = λ R_IG."""
    params, loss = network()
    g = jax.tree.leaves(jax.grad(loss)(params))
    regularizer = measures.implicit_gradient_regularizer(loss, params)
    assert regularizer.parameters == 21 == sum(x.size for x in g)
    np.testing.assert_allclose(regularizer.slope, np.sqrt(sum((x**2).sum() for x in g)), rtol=1e-12)
    np.testing.assert_allclose(regularizer.value, regularizer.slope**2 / 21, rtol=1e-12)
    penalty = measures.modified_loss(loss, 0.3)(params) - loss(params)
    rate = measures.implicit_rate(0.3, params)
    np.testing.assert_allclose(penalty, rate * regularizer.value, rtol=1e-12)


def test_products_of_a_curvature_give_the_same_gradient():
    """Without ``curvature``, JAX differentiates ‖∇L‖² itself."""
    batches = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.6, 0.1, -0.4])
    for make in (
        partial(measures.modified_loss, product, 0.3),
        partial(measures.modified_minibatch_loss, lambda w, xy: product(w, *xy), 0.3, batches),
    ):
        both = jax.jit(
            lambda w, make=make: [
                jax.value_and_grad(make(curvature=curvature))(w)
                for curvature in (None, measures.hessian)
            ]
        )
        (value, expected), (same, actual) = both(START)
        assert same == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_the_variance_predicts_minibatch_gradients(size):
    """E‖g_B‖² = ‖g‖² + (N − B)/(N − 1) · Γ/B over all batches of B, with gᵢ = xᵢ(xᵢ·w − yᵢ)."""
    x, y, w = np.asarray(draw(0, 6, 3)), np.asarray(draw(1, 6)), np.asarray(draw(2, 3))
    loss_fn = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2  # noqa: E731
    stats = measures.gradient_statistics(loss_fn, jnp.asarray(w), (x, y))
    g = x * (x @ w - y)[:, None]
    batches = [list(batch) for batch in itertools.combinations(range(6), size)]
    expected = np.mean([np.sum(g[batch].mean(axis=0) ** 2) for batch in batches])
    np.testing.assert_allclose(
        stats.norm**2 + (6 - size) / 5 * stats.variance / size, expected, rtol=1e-12
    )
    np.testing.assert_allclose(stats.norm, np.linalg.norm(g.mean(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(stats.noise_scale, stats.variance / stats.norm**2, rtol=1e-12)
    assert stats.examples == 6


def test_a_variance_far_below_the_mean_does_not_cancel():
    """Γ = 2/3 in float32 for gradients near 1e4."""
    x = 1e4 + jnp.array([-1.0, 0.0, 1.0], jnp.float32)
    loss_fn = lambda w, x: jnp.mean(w * x)  # noqa: E731
    stats = jax.jit(measures.gradient_statistics, static_argnums=0)(loss_fn, jnp.float32(0), x)
    np.testing.assert_allclose(stats.variance, 2 / 3, rtol=1e-3)


@pytest.mark.parametrize("size", [1.0, 1e-22, 1e20])
def test_the_noise_scale_does_not_overflow_or_underflow(size):
    """gᵢ = size·(5, 3, 1, −1): ‖g‖ = 2·size and Γ = 5·size²."""
    loss_fn = lambda w, x: size * (jnp.mean((w - x) ** 2) / 2)  # noqa: E731
    x = jnp.array([0.0, 2.0, 4.0, 6.0], jnp.float32)
    stats = jax.jit(measures.gradient_statistics, static_argnums=0)(loss_fn, jnp.float32(5), x)
    np.testing.assert_allclose(stats.norm / np.float32(size), 2, rtol=1e-6)
    np.testing.assert_allclose(stats.noise_scale, 1.25, rtol=1e-6)


def test_more_weights_than_int32_can_count_are_counted():
    weights = jax.ShapeDtypeStruct((3_000_000_000,), jnp.float32)
    with jax.enable_x64(False):
        found = jax.eval_shape(partial(measures.implicit_gradient_regularizer, jnp.sum), weights)
        assert {x.shape for x in found} == {()}
        for rate in (jnp.float32(0.4), 0.4):
            rates = jax.eval_shape(lambda w, h=rate: measures.implicit_rate(h, w), weights)
            assert rates.shape == ()
        np.testing.assert_allclose(measures.implicit_rate(jnp.float32(0.4), weights), 3e8)


def test_traced_steps_and_times_keep_the_dtypes_of_the_tree():
    def end(h, time, params):
        loss = measures.modified_loss(lambda w: (w["a"] * w["b"].sum()) ** 2 / 2, h)
        return measures.gradient_flow(loss, params, time[None], steps_between=5)

    params = {"a": jnp.float32(1.0), "b": jnp.ones(2)}
    out = jax.jit(end)(0.1, 0.5, params)
    assert (out["a"].shape, out["a"].dtype) == ((1,), jnp.float32)
    assert (out["b"].shape, out["b"].dtype) == ((1, 2), jnp.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, w: m.gradient_flow(product, w, 1.0), ValueError, "times=jnp.linspace"),
        (lambda m, w: m.gradient_flow(product, w, []), ValueError, "times=jnp.linspace"),
        (lambda m, w: m.gradient_flow(product, w, [1.0, 0.5]), ValueError, "times=jnp.linspace"),
        (lambda m, w: m.gradient_flow(product, w, [-1.0]), ValueError, "times=jnp.linspace"),
        (lambda m, w: m.gradient_flow(product, w, [np.nan]), ValueError, "times=jnp.linspace"),
        (
            lambda m, w: m.gradient_flow(product, w, [1], steps_between=0),
            ValueError,
            "steps_between=100",
        ),
        (
            lambda m, w: m.gradient_flow(product, w, [1], steps_between=1.5),
            ValueError,
            "steps_between=100",
        ),
        (lambda m, w: m.gradient_flow(product, w.astype(int), [1]), TypeError, "leaf of dtype int"),
        (lambda m, w: m.implicit_gradient_regularizer(abs, w), TypeError, r"loss_fn\(params\)\.me"),
        (lambda m, w: m.modified_loss(lambda w: (w, 0), 0.1)(w), TypeError, r"\(params\)\[0\]"),
        (lambda m, w: m.modified_loss(product, -0.1), ValueError, "step_size must be finite"),
        (lambda m, w: m.implicit_rate(lambda count: 0.1, w), TypeError, "step_size=0.1"),
        (lambda m, w: m.modified_minibatch_loss(product, 0.1, 1.0), ValueError, "leading axis"),
        (lambda m, w: m.gradient_statistics(product, w, (w, w[:1])), ValueError, "leading axis"),
        (
            lambda m, w: m.gradient_statistics(lambda w, x: w * x, w, w),
            TypeError,
            r"loss_fn\(params, batch\)\.mean\(\)",
        ),
    ],
)
def test_errors_show_a_corrected_call(call, error, message):
    with pytest.raises(error, match=message):
        call(measures, jnp.asarray(START))
