"""Scales: which leaves a method perturbs, and how far.

The registry tests the formulas with T = |w| + 0.1. Here are scales of zeros and ones, which must
leave some leaves exactly where they are, and ``flatreg.on``, which makes such scales.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import CASES, NOISE, same_noise
from tests.support.losses import direction_of, flat, network
from tests.support.problems import direction, tanh_net

KEY = jax.random.key(0)
SCALED = {  # name of the method -> factory that takes a scale
    "sam": functools.partial(flatreg.sam, 0.3),
    "penalized_gradient": functools.partial(flatreg.penalized_gradient, 0.3, 0.8),
    "gradient_norm_penalty": functools.partial(flatreg.gradient_norm_penalty, 0.3),
    "gradient_regularization": functools.partial(flatreg.gradient_regularization, 0.3),
    "gam": functools.partial(flatreg.gam, 0.3, 0.5),
    "gam_accelerated": functools.partial(flatreg.gam_accelerated, 0.3, 0.2),
    "gsam": functools.partial(flatreg.gsam, 0.3),
    "friendly_sam": functools.partial(flatreg.friendly_sam, 0.3),
    "looksam": functools.partial(flatreg.looksam, 0.3),
    "stable_sam": functools.partial(flatreg.stable_sam, 0.3),
    "perturbed_gradient": functools.partial(
        flatreg.perturbed_gradient, KEY, 0.3, distribution=same_noise
    ),
    "perturbed_gradient_curvature": functools.partial(
        flatreg.perturbed_gradient, KEY, 0.3, antithetic=True, curvature=flatreg.CurvatureScale()
    ),
}
every_scaled = pytest.mark.parametrize("name", SCALED)
ONLY_OUT = flatreg.on(lambda path: path.startswith("out"))


def perturbations(make):
    """All perturbations of one step: shifts of the oracle, and vectors of Hessian products."""
    params, loss = network()
    seen = []

    def grad_fn(point):
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(point)):
            seen.append(jax.tree.map(jnp.subtract, point, params))
        return jax.grad(loss)(point)

    def hvp(grad_fn, point):
        g, product = flatreg.exact_hvp(jax.grad(loss), point)
        seen.append(jax.tree.map(jnp.subtract, point, params))
        return g, lambda v: (seen.append(v), product(v))[1]

    with_hvp = {"hvp": hvp} if "hvp" in inspect.signature(make).parameters else {}
    method = make(**with_hvp)
    with jax.disable_jit():  # The oracle of looksam is inside a lax.cond.
        method.update(jax.grad(loss)(params), method.init(params), params, grad_fn=grad_fn)
    return seen


@pytest.mark.nightly_except("sam", "gam", "perturbed_gradient", "looksam", "gsam")
@every_scaled
def test_leaves_with_a_factor_of_zero_are_not_perturbed(name):
    """Neither a shift of the oracle nor a vector of a Hessian product touches them."""
    seen = perturbations(functools.partial(SCALED[name], scale=ONLY_OUT))
    for perturbation in seen:
        np.testing.assert_array_equal(flat(perturbation["hidden"]), 0)
    assert any(np.any(flat(perturbation["out"]) != 0) for perturbation in seen)


@pytest.mark.nightly_except("sam", "gam*", "gradient_*", "penalized_gradient", "stable_sam")
@pytest.mark.usefixtures("x64")
@every_scaled
def test_a_scale_of_ones_changes_nothing(name):
    params, loss = network()
    ones = lambda params: jax.tree.map(jnp.ones_like, params)  # noqa: E731
    d = direction_of(SCALED[name](scale=ones), loss, params)
    expected = direction_of(SCALED[name](), loss, params)
    np.testing.assert_allclose(flat(d), flat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.nightly_except("sam", "gam*", "gradient_*", "penalized_gradient", "stable_sam")
@pytest.mark.usefixtures("x64")
@every_scaled
def test_one_factor_per_leaf_equals_one_per_weight(name):
    params, loss = network()
    per_leaf = lambda params: jax.tree.map(lambda w: 1.0 + w.ndim, params)  # noqa: E731
    per_weight = lambda params: jax.tree.map(lambda w: jnp.full_like(w, 1.0 + w.ndim), params)  # noqa: E731
    d, expected = (
        direction_of(SCALED[name](scale=scale), loss, params) for scale in (per_leaf, per_weight)
    )
    np.testing.assert_allclose(flat(d), flat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_scaled_noise_is_the_factor_times_the_noise():
    """The oracle returns its point, so the direction is θ + u."""
    params, _ = network()
    method = SCALED["perturbed_gradient"](scale=lambda p: jax.tree.map(jnp.square, p))
    d, _ = method.update(params, method.init(params), params, grad_fn=lambda point: point)
    expected = flat(params) + flat(params) ** 2 * 0.3 * NOISE
    np.testing.assert_allclose(flat(d), expected, rtol=1e-12)


def test_every_method_but_asam_takes_a_scale():
    factories = {getattr(case.factory, "func", case.factory) for case in CASES}
    public = {f for f in factories if f.__module__.startswith("flatreg.methods")}
    takes = {f for f in public if "scale" in inspect.signature(f).parameters}
    assert public - takes == {flatreg.asam}
    assert takes == {make.func for make in SCALED.values()}


class TestOn:
    """``flatreg.on`` makes a scale of zeros and ones from a predicate on the path."""

    @pytest.mark.parametrize(
        ("params", "predicate", "expected"),
        [
            ({"a": 1.0, "b": 2.0}, lambda path: path == "b", {"a": 0.0, "b": 1.0}),
            (
                {"BatchNorm_0": {"scale": 1.0, "bias": 1.0}, "Dense_0": {"kernel": 1.0}},
                lambda path: "BatchNorm" in path,
                {"BatchNorm_0": {"scale": 1.0, "bias": 1.0}, "Dense_0": {"kernel": 0.0}},
            ),
            (
                {"layers": [1.0, (2.0, 3.0)]},
                lambda path: path == "layers/1/0",
                {"layers": [0.0, (1.0, 0.0)]},
            ),
            ([1.0, 2.0], lambda path: path == "0", [1.0, 0.0]),
            (2.0, lambda path: path == "", 1.0),
        ],
        ids=["dict", "nested", "list", "top list", "array"],
    )
    def test_factors_are_one_where_the_predicate_holds(self, params, predicate, expected):
        params = jax.tree.map(lambda w: jnp.full(2, w), params)
        assert flatreg.on(predicate)(params) == expected

    def test_sam_perturbs_only_the_chosen_leaves(self):
        params, loss = network()
        g = jax.grad(loss)(params)
        size = jnp.linalg.norm(flat(g["out"]))
        ahead = jax.tree.map(lambda w, x: w + 0.3 * x / size, params["out"], g["out"])
        d = direction_of(flatreg.sam(0.3, scale=ONLY_OUT), loss, params)
        expected = jax.grad(loss)(params | {"out": ahead})
        np.testing.assert_allclose(flat(d), flat(expected), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("predicate", [lambda path: path == "nowhere", lambda path: None])
    def test_no_matching_leaf_raises_and_lists_the_paths(self, predicate):
        tx = flatreg.sam(scale=flatreg.on(predicate))
        with pytest.raises(ValueError, match=r"no leaf.*'hidden/bias', 'hidden/kernel', 'out'"):
            direction(tx, *tanh_net())

    def test_a_tree_without_leaves_has_no_factors(self):
        assert flatreg.on(lambda path: True)({}) == {}

    @pytest.mark.parametrize("predicate", ["BatchNorm", None, {"kernel": True}])
    def test_a_predicate_must_be_a_function(self, predicate):
        with pytest.raises(TypeError, match=r"flatreg\.on\(lambda path: 'BatchNorm' in path\)"):
            flatreg.on(predicate)

    def test_under_inject_hyperparams_it_must_be_static(self):
        params, batch = tanh_net()
        with pytest.raises(TypeError, match="static_args='scale'"):
            optax.inject_hyperparams(flatreg.sam)(rho=0.3, scale=ONLY_OUT).init(params)
        tx = optax.inject_hyperparams(flatreg.sam, static_args="scale")(rho=0.3, scale=ONLY_OUT)
        d, _ = direction(tx, params, batch)
        expected, _ = direction(flatreg.sam(0.3, scale=ONLY_OUT), params, batch)
        np.testing.assert_allclose(flat(d), flat(expected), rtol=1e-6)
