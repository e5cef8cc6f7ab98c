"""The local learning coefficient of losses for which it is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.signal import lfilter

from flatreg import measures
from flatreg.measures.flatness.learning_coefficient import _diagnostics

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames=("loss_fn", "n", "options"))
def measured(loss_fn, params, n=1000, options=()):
    return measures.local_learning_coefficient(loss_fn, params, KEY, n=n, **dict(options))


def regression(size=6, count=400):
    """The squared error of linear regression with noise, and its minimum."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (count, size)) * jnp.linspace(1, 2, size)
    y = x @ jax.random.normal(keys[1], (size,)) + jax.random.normal(keys[2], (count,))
    best = jnp.linalg.lstsq(x, y)[0]
    return (lambda w: jnp.mean((x @ w - y) ** 2) / 2), best


REGRESSION, BEST = regression()
KNOWN = {
    "regular in 4 dimensions": (lambda w: jnp.sum(w**2), jnp.zeros(4), 2.0, 1000),
    "fourth power": (lambda w: jnp.sum(w**4), jnp.zeros(1), 0.25, 10_000),
    "on a valley": (lambda w: jnp.sum(jnp.prod(w**2)), jnp.array([3.0, 0.0]), 0.5, 1000),
    "linear regression": (REGRESSION, BEST, 3.0, 400),
}


@pytest.mark.nightly_except("linear regression", "on a valley")
@pytest.mark.parametrize("name", KNOWN)
def test_known_coefficients_are_found(name):
    loss_fn, params, expected, n = KNOWN[name]
    found = measured(loss_fn, params, n)
    assert found.converged
    assert abs(found.value - expected) <= min(2 * found.standard_error, 0.1 * expected)
    assert found.standard_error < 0.1 * expected


def exact_crossing(n, localization):
    """E[nβ w₁²w₂²] under exp(−nβ w₁²w₂² − γ(w₁² + w₂²)/2), by numerical integration."""
    a, c = n / np.log(n), localization

    def integral(power):
        # The integral over w₁ is Gaussian with precision 2aw₂² + γ.
        def density(y):
            precision = 2 * a * y**2 + c
            return (a * y**2 / precision) ** power * precision**-0.5 * np.exp(-c * y**2 / 2)

        return quad(density, 0, 0.1)[0] + quad(density, 0.1, 20)[0]

    return integral(1) / integral(0)


def test_at_a_crossing_the_estimate_is_that_of_the_exact_density():
    """λ = ½ with multiplicity 2, so the mean lies below ½ by a multiple of 1/log n."""
    options = (("draws", 4000),)
    found = measured(lambda w: jnp.prod(w**2), jnp.zeros(2), 100, options)
    expected = exact_crossing(100, 1.0)
    assert found.converged
    assert abs(found.value - expected) <= min(2 * found.standard_error, 0.1 * expected)


def test_a_chain_that_is_too_short_has_not_converged():
    """Few draws of chains that agree, and draws with a step size that is too large, not tuned."""
    loss_fn = KNOWN["regular in 4 dimensions"][0]
    options = (("chains", 4), ("draws", 80), ("burn_in", 200))
    short = measured(loss_fn, jnp.zeros(4), 1000, options)
    assert not short.converged
    assert short.rhat < 1.05
    assert 0.4 < short.acceptance < 0.7
    assert 50 < short.effective_draws < 200
    stuck = measured(lambda w: 1e5 * loss_fn(w), jnp.zeros(4), 1000, (("burn_in", 0),))
    assert not stuck.converged
    assert stuck.acceptance < 0.2


def test_the_diagnostics_see_what_they_should():
    """Independent draws pass. A drift, chains that disagree and correlated draws do not."""
    random = np.random.default_rng(0)
    draws = random.normal(size=(8, 1000)).astype(np.float32)
    diagnostics = jax.jit(_diagnostics)
    rhat, count = diagnostics(draws)
    assert rhat < 1.01
    np.testing.assert_allclose(count, 8000, rtol=0.1)
    assert diagnostics(draws + np.linspace(0, 3, 1000, dtype=np.float32))[0] > 1.05
    assert diagnostics(draws + np.arange(8, dtype=np.float32)[:, None])[0] > 1.05
    assert diagnostics(np.ones((8, 1000), np.float32)) == (np.inf, 0)
    # An autoregression with coefficient ρ has (1−ρ)/(1+ρ) effective draws per draw.
    correlated = lfilter([1], [1, -0.9], draws)
    np.testing.assert_allclose(
        diagnostics(correlated.astype(np.float32))[1], 8000 * 0.1 / 1.9, rtol=0.25
    )


@pytest.mark.parametrize(
    "options",
    [{"n": 1}, {"n": 10, "chains": 1}, {"n": 10, "draws": 3}, {"n": 9, "localization": 0}],
)
def test_wrong_arguments_are_errors(options):
    with pytest.raises(ValueError, match="for example, write"):
        measures.local_learning_coefficient(lambda w: jnp.sum(w**2), jnp.ones(2), KEY, **options)
