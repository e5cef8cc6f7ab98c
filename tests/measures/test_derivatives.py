"""Losses without forward-mode or second derivatives, in every measure that uses products Hv."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from flatreg import measures
from tests.support.losses import fused_tanh, opaque_tanh

KEY = jax.random.key(0)
BALL = {"steps": 3, "random_starts": 0}
X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
W = jnp.array([0.3, -0.5])
REVERSE = functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)
DIFFERENCE = functools.partial(measures.hessian, hvp=flatreg.finite_difference_hvp(0.01))
LOSSES = {"plain": jnp.tanh, "reverse": fused_tanh, "first": opaque_tanh}


def batch_loss(tanh, w, x):
    return jnp.mean(tanh(x @ w) ** 2 + tanh(x @ w))


def losses(name):
    """The loss, and the loss on a batch, with one of the implementations of tanh."""
    of_batch = functools.partial(batch_loss, LOSSES[name])
    return (lambda w: of_batch(w, X)), of_batch


# Each measure that takes a curvature, as a function of the two losses, w and its options.
MEASURES = {
    "top_eigenpairs": lambda f, b, w, **c: measures.top_eigenpairs(f, w, KEY, 2, **c).values,
    "trace": lambda f, b, w, **c: measures.trace(f, w, KEY, probes=2, **c),
    "diagonal": lambda f, b, w, **c: measures.diagonal(f, w, probes=None, **c).value,
    "spectral_density": lambda f, b, w, **c: (
        measures.spectral_density(f, w, KEY, probes=1, **c).nodes
    ),
    "zeroth_order_flatness": lambda f, b, w, **c: (
        measures.zeroth_order_flatness(f, w, KEY, 0.5, **BALL, **c).value
    ),
    "first_order_flatness": lambda f, b, w, **c: (
        measures.first_order_flatness(f, w, KEY, 0.5, **BALL, **c).value
    ),
    "zeroth_and_first_order_flatness": lambda f, b, w, **c: [
        found.value
        for found in measures.zeroth_and_first_order_flatness(f, w, KEY, 0.5, **BALL, **c)
    ],
    "stability": lambda f, b, w, **c: (
        measures.stability(f, w, KEY, learning_rate=0.1, **c).sharpness
    ),
    "hessian_lipschitz": lambda f, b, w, **c: (
        measures.hessian_lipschitz(f, w, KEY, 0.5, starts=3, steps=15, **c).value
    ),
    "modified_loss": lambda f, b, w, **c: jax.grad(measures.modified_loss(f, 0.5, **c))(w),
    "modified_minibatch_loss": lambda f, b, w, **c: measures.gradient_flow(
        measures.modified_minibatch_loss(b, 0.5, X.reshape(2, 3, 2), **c), w, [0.1], steps_between=1
    ),
}
CHEAP = {"trace", "diagonal", "modified_loss"}
every_measure = pytest.mark.parametrize("name", MEASURES)
every_value = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x in CHEAP else pytest.mark.nightly) for x in MEASURES],
)


def measured(name, loss, **options):
    return jax.jit(lambda w: MEASURES[name](*losses(loss), w, **options))(W)


@functools.cache
def by_autodiff(name):
    return measured(name, "plain")


def test_every_measure_with_a_curvature_is_tested():
    functions = {name: getattr(measures, name) for name in measures.__all__}
    takes = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and "curvature" in inspect.signature(function).parameters
    }
    assert takes == set(MEASURES)


@every_measure
@pytest.mark.parametrize("loss", ["reverse", "first"])
def test_the_error_shows_the_curvature_to_pass(name, loss):
    """Exact derivatives of a ``modified_loss`` need only reverse mode."""
    if loss == "reverse" and name.startswith("modified"):
        return
    with pytest.raises((TypeError, ValueError, NotImplementedError)) as caught:
        jax.eval_shape(lambda w: MEASURES[name](*losses(loss), w), W)
    notes = "".join(caught.value.__notes__)
    assert "curvature=functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)" in notes
    assert "hvp=flatreg.finite_difference_hvp(0.01)), which works" in notes


@pytest.mark.nightly
@every_value
def test_reverse_mode_products_give_the_same_value(name):
    actual = measured(name, "reverse", curvature=REVERSE)
    rtol = 0.02 if name == "hessian_lipschitz" else 1e-5
    for x, y in zip(*map(jax.tree.leaves, (actual, by_autodiff(name))), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5)


@pytest.mark.nightly
@every_value
def test_finite_differences_give_nearly_the_same_value(name):
    """The loss has only first derivatives."""
    actual = measured(name, "first", curvature=DIFFERENCE)
    for x, y in zip(*map(jax.tree.leaves, (actual, by_autodiff(name))), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.05, atol=0.02)
