"""Methods that coincide for special hyperparameters, and Hessian-vector products that agree.

All tests use float64. Where two calls compute the same formula, they agree up to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import CASES, Case
from tests.support.losses import PROBLEMS, direction_of, draw, flat, logistic, network

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
HVPS = {
    "exact": flatreg.exact_hvp,
    "forward": flatreg.forward_hvp,
    "reverse": flatreg.reverse_hvp,
    "finite difference": flatreg.finite_difference_hvp(1e-5),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda make: make.__name__)
every_hvp = pytest.mark.parametrize("hvp", HVPS.values(), ids=HVPS)

pytestmark = pytest.mark.usefixtures("x64")


def assert_same(one, other, problem, rtol=1e-12):
    d, expected = (flat(direction_of(tx, problem.loss, problem.params)) for tx in (one, other))
    np.testing.assert_allclose(d, expected, rtol=rtol, atol=rtol * np.linalg.norm(expected))


@pytest.mark.nightly_except("0.1-quartic", "0.1-logistic")
@every_problem
@pytest.mark.parametrize("r", [1e-3, 1e-2, 0.1, 1.0])
def test_penalty_by_differences_is_the_penalized_gradient(r, problem):
    penalty = 0.08
    assert_same(
        flatreg.gradient_norm_penalty(penalty, hvp=flatreg.finite_difference_hvp(r)),
        flatreg.penalized_gradient(r, penalty / r),
        problem(),
    )


@every_problem
def test_penalized_gradient_is_sam_for_alpha_one(problem):
    assert_same(flatreg.penalized_gradient(0.3, 1.0), flatreg.sam(0.3), problem())


@every_problem
def test_penalized_gradient_is_the_gradient_for_alpha_zero(problem):
    params, loss = problem()
    d = direction_of(flatreg.penalized_gradient(0.3, 0.0), loss, params)
    np.testing.assert_allclose(flat(d), flat(jax.grad(loss)(params)), **CLOSE)


@every_problem
def test_accelerated_gam_is_sam_for_alpha_one_and_gamma_zero(problem):
    assert_same(
        flatreg.gam_accelerated(0.2, 0.3, alpha=1.0, gamma=0.0), flatreg.sam(0.3), problem()
    )


@every_problem
def test_gam_tends_to_the_norm_penalty_for_radius_zero(problem):
    assert_same(
        flatreg.gam(1e-12, 0.2 / 1e-12), flatreg.gradient_norm_penalty(0.2), problem(), rtol=1e-9
    )


def test_asam_is_sam_scaled_by_the_weights():
    scale = lambda params: jax.tree.map(lambda w: jnp.abs(w) + 0.01, params)  # noqa: E731
    assert_same(flatreg.asam(0.3), flatreg.sam(0.3, scale=scale), network())


def test_sam_with_a_zero_one_scale_perturbs_some_leaves():
    params, loss = network()
    only_out = lambda params: {"hidden": (0.0, 0.0), "out": [1.0, 1.0]}  # noqa: E731
    g = jax.grad(loss)(params)
    out = jax.tree.map(lambda x: 0.3 * x / jnp.linalg.norm(flat(g["out"])), g["out"])
    shifted = params | {"out": optax.tree.add(params["out"], out)}
    d = direction_of(flatreg.sam(0.3, scale=only_out), loss, params)
    np.testing.assert_allclose(flat(d), flat(jax.grad(loss)(shifted)), **CLOSE)


@pytest.mark.nightly_except(
    "sam", "gam", "perturbed_gradient", "looksam", "combine", "gradient_norm_penalty_1"
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_combining_one_method_changes_no_bit(case: Case):
    params, loss = logistic()
    alone = direction_of(case.make(), loss, params)
    combined = direction_of(flatreg.combine(case.make()), loss, params)
    jax.tree.map(np.testing.assert_array_equal, combined, alone)


@pytest.mark.slow
def test_combined_methods_add_what_each_adds_to_the_gradient():
    params, loss = network()
    cases = [case for case in CASES if case.name != "combine"]
    combined = direction_of(flatreg.combine(*[case.make() for case in cases]), loss, params)
    g = flat(jax.grad(loss)(params))
    expected = g + sum(flat(direction_of(case.make(), loss, params)) - g for case in cases)
    np.testing.assert_allclose(flat(combined), expected, **CLOSE)


def test_plain_transformations_combine_with_methods():
    """A penalty on the weights needs no oracle, and its ``update`` would reject one."""

    def pull(strength):
        def update(updates, state, params=None):
            return jax.tree.map(lambda g, w: g + strength * w**3, updates, params), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    params, loss = network()
    g, weights = flat(jax.grad(loss)(params)), flat(params)
    uphill = direction_of(flatreg.sam(0.1), loss, params)
    combined = direction_of(flatreg.combine(flatreg.sam(0.1), pull(0.5)), loss, params)
    np.testing.assert_allclose(flat(combined), g + (flat(uphill) - g) + 0.5 * weights**3, **CLOSE)
    for alone in (flatreg.combine(pull(0.5)), flatreg.observe(pull(0.5))):
        d = direction_of(alone, loss, params)
        np.testing.assert_allclose(flat(d), g + 0.5 * weights**3, **CLOSE)


@pytest.mark.slow
def test_combined_methods_each_keep_their_own_state():
    w, loss = logistic().vector, logistic().loss_of_vector
    rhos, mus = jnp.array([0.1, 0.2, 0.4]), jnp.array([0.3, 0.2, 0.1])
    method = flatreg.combine(
        flatreg.sam(lambda step: rhos[step]),
        flatreg.every(flatreg.gradient_regularization(lambda step: mus[step]), 2),
    )
    state, grad_fn = method.init(w), jax.grad(loss)
    g, hessian = np.asarray(grad_fn(w)), np.asarray(jax.hessian(loss)(w))
    for step in range(3):
        d, state = method.update(grad_fn(w), state, w, grad_fn=grad_fn)
        expected = np.asarray(grad_fn(w + rhos[step] * g / np.linalg.norm(g)))
        if step % 2 == 0:  # every second step counts one step of the inner schedule
            expected = expected + 2 * mus[step // 2] * hessian @ g
        np.testing.assert_allclose(d, expected, **CLOSE)


@pytest.mark.nightly_except("*-quartic")
@every_problem
@every_hvp
def test_hvp_is_the_product_with_the_dense_hessian(hvp, problem):
    problem = problem()
    w, loss = problem.vector, problem.loss_of_vector
    g, product = hvp(jax.grad(loss), w)
    np.testing.assert_allclose(g, jax.grad(loss)(w), **CLOSE)
    rtol = 1e-4 if hvp is HVPS["finite difference"] else 1e-12
    for v in (draw(20, w.size), 1e-6 * draw(21, w.size)):
        expected = jax.hessian(loss)(w) @ v
        np.testing.assert_allclose(
            product(v), expected, rtol=0, atol=rtol * np.linalg.norm(expected)
        )


@every_hvp
def test_hvp_of_a_tree_is_that_of_the_vector(hvp):
    params, loss = problem = network()
    tangent = jax.tree.map(jnp.cos, params)
    _, product = hvp(jax.grad(loss), params)
    expected = jax.hessian(problem.loss_of_vector)(problem.vector) @ flat(tangent)
    np.testing.assert_allclose(flat(product(tangent)), expected, rtol=1e-4)


@pytest.mark.nightly_except("gam-*", "gradient_norm_penalty_*")
@every_hvp
@pytest.mark.parametrize("case", [c for c in CASES if c.uses_hvp], ids=lambda case: case.name)
def test_method_does_not_depend_on_the_hvp(case: Case, hvp):
    assert_same(case.make(hvp=hvp), case.make(), network(), rtol=1e-4)


@every_problem
def test_gam_ascends_with_ascent_hvp_and_descends_with_hvp(problem):
    """With a finite difference of length r for the ascent, f is parallel to ∇L(θ + rĝ) − g."""
    r, rho, alpha = 0.5, 0.3, 0.5
    problem = problem()
    w, grad = problem.vector, jax.grad(problem.loss_of_vector)
    g = grad(w)
    uphill = grad(w + r * g / jnp.linalg.norm(g)) - g
    worst = w + rho * uphill / jnp.linalg.norm(uphill)
    hessian = jax.hessian(problem.loss_of_vector)(worst)
    expected = g + alpha * rho * hessian @ grad(worst) / jnp.linalg.norm(grad(worst))
    method = flatreg.gam(rho, alpha, ascent_hvp=flatreg.finite_difference_hvp(r))
    d = direction_of(method, problem.loss_of_vector, w)
    np.testing.assert_allclose(d, expected, rtol=1e-9, atol=1e-9)


def test_finite_difference_along_a_zero_vector_is_zero():
    w, loss = logistic().vector, logistic().loss_of_vector
    _, product = HVPS["finite difference"](jax.grad(loss), w)
    np.testing.assert_array_equal(product(jnp.zeros_like(w)), 0)


R, ALPHA, T = 0.3, 0.8, 3
WARM_UPS = {
    "r-warm-up": (
        lambda: flatreg.penalized_gradient(r=optax.linear_schedule(0.0, R, T), alpha=ALPHA),
        lambda t: (R * min(1, t / T), ALPHA),
    ),
    "lambda-warm-up": (
        lambda: flatreg.penalized_gradient(r=R, alpha=optax.linear_schedule(0.0, ALPHA, T)),
        lambda t: (R, ALPHA * min(1, t / T)),
    ),
    "zero-warm-up": (
        lambda: flatreg.after(flatreg.penalized_gradient(r=R, alpha=ALPHA), T),
        lambda t: (R, ALPHA if t >= T else 0.0),
    ),
}


@pytest.mark.parametrize(("method", "recipe"), WARM_UPS.values(), ids=WARM_UPS)
def test_warm_up_follows_its_recipe_step_by_step(method, recipe):
    """Five steps of gradient descent equal steps along (1 − α)∇L(θ) + α∇L(θ + rĝ)."""
    h, grad = 0.2, jax.grad(logistic().loss_of_vector)
    w = by_hand = logistic().vector
    chain = optax.chain(method(), optax.sgd(h))
    state = chain.init(w)
    for step in range(T + 2):
        updates, state = chain.update(grad(w), state, w, grad_fn=grad)
        w = optax.apply_updates(w, updates)
        r, alpha = recipe(step)
        g = grad(by_hand)
        uphill = grad(by_hand + r * g / jnp.linalg.norm(g))
        by_hand = by_hand - h * ((1 - alpha) * g + alpha * uphill)
        np.testing.assert_allclose(w, by_hand, rtol=1e-7)  # Optax schedules count in float32
