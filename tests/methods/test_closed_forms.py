"""Directions in closed form on simple losses, in float64 up to 1e-9.

The losses are a quadratic ½θᵀAθ, the product loss ½(y − abx)², logistic regression on one point,
and a loss that does not depend on the scale of its parameters. No reference uses autodiff.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.losses import direction_of, draw

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
P_NORMS = [1, 1.5, 2, 3, 4]

pytestmark = pytest.mark.usefixtures("x64")


def quadratic(size=5):
    """A symmetric indefinite A, a point θ, the loss, g = Aθ and ĝ."""
    half, w = np.asarray(draw(0, size, size)), np.asarray(draw(1, size))
    matrix = half + half.T
    g = matrix @ w
    return matrix, w, lambda w: w @ matrix @ w / 2, g, g / np.linalg.norm(g)


def test_sam_on_a_quadratic():
    """d = A(θ + ρĝ)."""
    matrix, w, loss, _, g_hat = quadratic()
    d = direction_of(flatreg.sam(0.3), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, matrix @ (w + 0.3 * g_hat), **CLOSE)


@pytest.mark.parametrize(
    "method",
    [
        lambda: flatreg.penalized_gradient(0.3, 0.8),
        lambda: flatreg.penalized_gradient(0.03, 8.0),
        lambda: flatreg.gradient_norm_penalty(0.24),
        lambda: flatreg.gradient_norm_penalty(0.24, hvp=flatreg.finite_difference_hvp(0.7)),
    ],
    ids=["differences", "short differences", "exact", "exact by differences"],
)
def test_pgn_on_a_quadratic_depends_only_on_alpha_times_r(method):
    matrix, w, loss, _, g_hat = quadratic()
    d = direction_of(method(), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, matrix @ (w + 0.24 * g_hat), **CLOSE)


def test_normalized_clean_term_is_the_unit_gradient():
    matrix, w, loss, _, g_hat = quadratic()
    method = flatreg.penalized_gradient(0.3, 0.8, normalize_clean=True)
    expected = 0.2 * g_hat + 0.8 * matrix @ (w + 0.3 * g_hat)
    np.testing.assert_allclose(direction_of(method, loss, jnp.asarray(w)), expected, **CLOSE)


def test_egr_changes_the_curvature_of_a_quadratic():
    """d = g + 2μAg, so an eigenvalue a becomes a(1 + 2μa)."""
    matrix, w, loss, g, _ = quadratic()
    d = direction_of(flatreg.gradient_regularization(0.1), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, g + 0.2 * matrix @ g, **CLOSE)
    curvatures, modes = np.linalg.eigh(matrix)
    np.testing.assert_allclose(
        modes.T @ d, curvatures * (1 + 0.2 * curvatures) * (modes.T @ w), **CLOSE
    )


@pytest.mark.parametrize("mu", [0.0, 0.05, 0.5])
def test_egr_is_stable_up_to_the_predicted_step_size(mu):
    curvature = 4.0
    edge = 2 / (curvature * (1 + 2 * mu * curvature))  # hλ(1 + 2μλ) < 2
    for factor, settles in ((0.99, True), (1.01, False)):
        method = optax.chain(flatreg.gradient_regularization(mu), optax.sgd(factor * edge))
        w = walk(method, lambda w: curvature * w**2 / 2, jnp.asarray(1.0), steps=100)[-1]
        assert (abs(w) < 0.2) == settles
        np.testing.assert_allclose(abs(w), abs(1 - 2 * factor) ** 100, rtol=1e-9)


def test_gam_on_an_isotropic_quadratic():
    """d = aθ + αρ aθ/‖θ‖: GAM adds a pull of constant length."""
    w, a, rho, alpha = np.asarray(draw(2, 4)), 1.7, 0.3, 0.6
    d = direction_of(flatreg.gam(rho, alpha), lambda w: a * w @ w / 2, jnp.asarray(w))
    np.testing.assert_allclose(d, a * w + alpha * rho * a * w / np.linalg.norm(w), **CLOSE)


@pytest.mark.parametrize("rho_prime", [0.01, 1.0])
def test_both_gam_algorithms_ascend_to_the_same_point(rho_prime):
    """θ_adv = θ + ρ f/‖f‖ with f = Aĝ for both algorithms."""
    matrix, w, loss, _, g_hat = quadratic()
    visited = {"gam": [], "gam_accelerated": []}

    def hvp(grad_fn, params):
        visited["gam"].append(params)
        return flatreg.exact_hvp(grad_fn, params)

    def grad_fn(params):
        visited["gam_accelerated"].append(params)
        return jax.grad(loss)(params)

    g, w = jax.grad(loss)(w), jnp.asarray(w)
    method = flatreg.gam(0.3, 0.5, hvp=hvp)
    method.update(g, method.init(w), w, grad_fn=jax.grad(loss))
    method = flatreg.gam_accelerated(0.3, rho_prime)
    method.update(g, method.init(w), w, grad_fn=grad_fn)
    worst = w + 0.3 * matrix @ g_hat / np.linalg.norm(matrix @ g_hat)  # f̂ = Hĝ/‖Hĝ‖
    np.testing.assert_allclose(visited["gam"][1], worst, **CLOSE)
    np.testing.assert_allclose(visited["gam_accelerated"][1], worst, **CLOSE)


@pytest.mark.parametrize("start", [0.003, 5.0])
def test_sam_on_a_quadratic_ends_in_a_two_cycle(start):
    """SAM does not converge; it ends with |w| = haρ/(2 − ha)."""
    a, rho, h = 2.0, 0.3, 0.2
    method = optax.chain(flatreg.sam(rho), optax.sgd(h))
    last = walk(method, lambda w: a * w**2 / 2, jnp.asarray(start), steps=200)[-2:]
    assert last[0] * last[1] < 0
    np.testing.assert_allclose(np.abs(last), h * a * rho / (2 - h * a), **CLOSE)


def walk(method, loss, w, steps):
    """The parameters after each step of the chain."""
    grad_fn = jax.grad(loss)

    def step(carry, _):
        w, state = carry
        updates, state = method.update(grad_fn(w), state, w, grad_fn=grad_fn)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    return np.asarray(jax.lax.scan(step, (w, method.init(w)), length=steps)[1])


def test_egr_flow_balances_the_factors_of_a_product():
    a, b, x, y, mu = 2.8, 3.5, 1.3, 0.6, 0.05
    loss = lambda w: (y - w[0] * w[1] * x) ** 2 / 2  # noqa: E731
    d_a, d_b = direction_of(flatreg.gradient_regularization(mu), loss, jnp.array([a, b]))
    e, imbalance = y - a * b * x, a**2 - b**2  # Δ = a² − b² along the flow −d
    np.testing.assert_allclose(
        2 * (b * d_b - a * d_a), -4 * mu * x**2 * e**2 * imbalance, rtol=1e-9
    )


@pytest.mark.parametrize("name", ["sam", "penalized_gradient", "gam"])
def test_methods_balance_factors_that_plain_flow_conserves(name):
    """Δ = a² − b² > 0 decreases along −d and is constant along −g."""
    methods = {
        "sam": flatreg.sam(0.1),
        "penalized_gradient": flatreg.penalized_gradient(0.1, 0.8),
        "gam": flatreg.gam(0.1, 1.0),
    }
    loss = lambda w: (0.6 - w[0] * w[1]) ** 2 / 2  # noqa: E731
    w = jnp.array([2.8, 1.5])
    g, d = jax.grad(loss)(w), direction_of(methods[name], loss, w)
    np.testing.assert_allclose(w[1] * g[1] - w[0] * g[0], 0, atol=1e-12)
    assert w[1] * d[1] - w[0] * d[0] < -1e-3


def one_point():
    """−log σ(θ·x) with its gradient −(1 − s)x and Hessian s(1 − s)xxᵀ."""
    x, w = np.asarray(draw(3, 4)), np.asarray(draw(4, 4))
    return x, np.linalg.norm(x), w, lambda w: jax.nn.softplus(-(w @ x))


def sigmoid(margin):
    return 1 / (1 + np.exp(-margin))


def test_egr_on_one_logistic_point():
    x, size, w, loss = one_point()
    s = sigmoid(w @ x)
    d = direction_of(flatreg.gradient_regularization(0.1), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, -(1 - s) * x * (1 + 0.2 * s * (1 - s) * size**2), **CLOSE)


@pytest.mark.parametrize("p", P_NORMS)
def test_pgn_on_one_logistic_point(p):
    x, _, w, loss = one_point()
    s, size = sigmoid(w @ x), np.linalg.norm(x, p)
    d = direction_of(flatreg.gradient_norm_penalty(0.3, ord=p), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, -(1 - s) * x * (1 + 0.3 * s * size), **CLOSE)


def test_sam_and_gam_on_one_logistic_point():
    """SAM and GAM see the loss at a margin that is lower by ρ‖x‖."""
    x, size, w, loss = one_point()
    s, lower = sigmoid(w @ x), sigmoid(w @ x - 0.3 * size)
    d = direction_of(flatreg.sam(0.3), loss, jnp.asarray(w))
    np.testing.assert_allclose(d, -(1 - lower) * x, **CLOSE)
    d = direction_of(flatreg.gam(0.3, 0.5), loss, jnp.asarray(w))
    pull = 0.5 * 0.3 * lower * (1 - lower) * size
    np.testing.assert_allclose(d, -x * (1 - s + pull), **CLOSE)


def scale_invariant():
    half, w = draw(5, 5, 5), draw(6, 5)
    return w, lambda w: jnp.sin(w @ half @ w / (w @ w)) + w[0] / jnp.sqrt(w @ w)


def test_gradient_of_a_scale_invariant_loss_is_tangential():
    w, loss = scale_invariant()
    np.testing.assert_allclose(w @ jax.grad(loss)(w), 0, atol=1e-9)


@pytest.mark.parametrize("p", P_NORMS)
def test_norm_penalty_on_a_scale_invariant_loss_pushes_outward(p):
    """∇L(cθ) = ∇L(θ)/c, so θ·∇‖g‖ₚ = −‖g‖ₚ by Euler's theorem."""
    w, loss = scale_invariant()
    g, d = jax.grad(loss)(w), direction_of(flatreg.gradient_norm_penalty(0.3, ord=p), loss, w)
    np.testing.assert_allclose(w @ d, -0.3 * np.linalg.norm(g, p), **CLOSE)


def test_egr_on_a_scale_invariant_loss_pushes_outward():
    """θ·d = −2μ‖g‖²."""
    w, loss = scale_invariant()
    g, d = jax.grad(loss)(w), direction_of(flatreg.gradient_regularization(0.1), loss, w)
    np.testing.assert_allclose(w @ d, -0.1 * 2 * np.linalg.norm(g) ** 2, **CLOSE)


def test_sam_on_a_scale_invariant_loss_pushes_outward():
    """θ = θ′ − ρĝ and θ′·∇L(θ′) = 0, so θ·d = −ρ ĝ·d."""
    w, loss = scale_invariant()
    g, d = jax.grad(loss)(w), direction_of(flatreg.sam(0.1), loss, w)
    np.testing.assert_allclose(w @ d, -0.1 * (g / np.linalg.norm(g)) @ d, **CLOSE)
