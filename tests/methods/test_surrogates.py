"""The direction of each method is the gradient of its surrogate, in float64 up to 1e-9.

The surrogates come from the registry and are differentiated by ``jax.grad``. Where the gradient and
Hessian of a loss are known, the directions are also compared with dense algebra in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from tests.support.cases import CASES, Case, absolute, every_case
from tests.support.losses import PROBLEMS, direction_of, draw, flat, logistic, network

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda make: make.__name__)

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.nightly_except("*-network")
@every_problem
@every_case
def test_method_descends_its_surrogate(case: Case, problem):
    params, loss = problem = problem()
    gradient = jax.grad(problem.loss_of_vector)(problem.vector)
    expected = jax.grad(lambda w: case.surrogate(problem.loss_of_vector, w))(problem.vector)
    assert np.linalg.norm(expected - gradient) > 1e-3  # the surrogate differs from the loss
    np.testing.assert_allclose(flat(direction_of(case.make(), loss, params)), expected, **CLOSE)


@pytest.mark.nightly_except(
    "sam", "gam", "perturbed_gradient", "looksam", "combine", "gradient_norm_penalty_1"
)
@every_case
def test_flat_parameters_equal_a_tree(case: Case):
    params, loss = problem = network()
    d = direction_of(case.make(), loss, params)
    assert jax.tree.structure(d) == jax.tree.structure(params)
    d_flat = direction_of(case.make(), problem.loss_of_vector, problem.vector)
    np.testing.assert_allclose(flat(d), d_flat, **CLOSE)


@every_case
def test_neutral_hyperparameters_give_the_gradient(case: Case):
    params, loss = network()
    d = direction_of(case.neutral(), loss, params)
    np.testing.assert_allclose(flat(d), flat(jax.grad(loss)(params)), **CLOSE)


@pytest.mark.parametrize("case", [c for c in CASES if c.isotropic], ids=lambda case: case.name)
def test_isotropic_methods_commute_with_rotations(case: Case):
    w, loss = network().vector, network().loss_of_vector
    rotation = jnp.linalg.qr(draw(20, w.size, w.size))[0]
    turned = direction_of(case.make(), lambda w: loss(rotation @ w), rotation.T @ w)
    np.testing.assert_allclose(rotation @ turned, direction_of(case.make(), loss, w), **CLOSE)


@pytest.mark.nightly_except("sam-rho", "perturbed_gradient-sigma")
@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{case.name}-{name}") for case in CASES for name in case.scalars],
)
def test_schedules_are_evaluated_at_the_step_count(case: Case, name: str):
    w, loss = logistic().vector, logistic().loss_of_vector
    values = case.scalars[name] * jnp.array([0.5, 1.5])
    method, grad_fn = case.make(**{name: lambda step: values[step]}), jax.grad(loss)
    state = method.init(w)
    for value in values:
        d, state = method.update(grad_fn(w), state, w, grad_fn=grad_fn)
        surrogate = functools.partial(case.surrogate, loss, **{name: value})
        np.testing.assert_allclose(d, jax.grad(surrogate)(w), **CLOSE)


@pytest.mark.nightly_except(
    "sam", "gam", "perturbed_gradient", "looksam", "combine", "gradient_norm_penalty_1"
)
@every_case
def test_scalars_may_be_arrays(case: Case):
    params, loss = logistic()
    d = direction_of(case.make(**jax.tree.map(jnp.asarray, case.scalars)), loss, params)
    np.testing.assert_allclose(flat(d), flat(direction_of(case.make(), loss, params)), **CLOSE)


@pytest.mark.parametrize("scale", [None, absolute], ids=["isotropic", "scaled"])
@pytest.mark.parametrize("clean_weight", [None, 1.0], ids=["paper", "authors"])
def test_accelerated_gam_matches_dense_algebra_on_a_quadratic(clean_weight, scale):
    rho, rho_prime, alpha, beta, gamma = 0.2, 0.1, 0.6, 0.3, 0.4
    matrix = np.asarray(draw(30, 6, 6) + draw(30, 6, 6).T)
    w = np.asarray(draw(31, 6))
    t = np.eye(6) if scale is None else np.diag(np.abs(w) + 0.1)

    def uphill(v, length):
        return length * t @ t @ v / np.linalg.norm(t @ v)

    g0 = matrix @ w
    g1 = matrix @ (w + uphill(g0, rho_prime))
    worst = w + uphill(g1 - g0, rho)
    g2 = matrix @ worst
    g3 = matrix @ (worst + uphill(g2, rho_prime))
    plus = alpha * g1 + (1 - alpha) * g3
    minus = (beta if clean_weight is None else clean_weight) * g0 + (1 - beta) * g2
    across = np.eye(6) - np.outer(plus, plus) / (plus @ plus)  # the projection onto h₊^⊥

    method = flatreg.gam_accelerated(
        rho, rho_prime, alpha, beta, gamma, scale=scale, clean_weight=clean_weight
    )
    d = direction_of(method, lambda w: w @ matrix @ w / 2, jnp.asarray(w))
    np.testing.assert_allclose(d, plus - gamma * across @ minus, **CLOSE)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_norm_penalty_ignores_coordinates_with_zero_gradient(p):
    matrix = np.array([[2, 1, -1, 3], [1, -3, 2, 0], [-1, 2, 1, 1], [3, 0, 1, 4]])
    w, g = np.array([1, -2, 3, 0]), np.array([2, 0, -1, 0])  # integers, so that g has exact zeros
    weighted = np.sign(g) * np.abs(g) ** (p - 1.0) / np.sum(np.abs(g) ** float(p)) ** (1 - 1 / p)

    def loss(params):
        w = params["live"]
        return w @ matrix @ w / 2 - (matrix @ params_at["live"] - g) @ w

    params_at = {"dead": jnp.ones((2, 2)), "live": jnp.asarray(w, float)}
    assert list(jax.grad(loss)(params_at)["live"]) == list(g)
    d = direction_of(flatreg.gradient_norm_penalty(0.2, ord=p), loss, params_at)
    np.testing.assert_array_equal(d["dead"], 0)
    np.testing.assert_allclose(d["live"], g + 0.2 * matrix @ weighted, **CLOSE)
