"""Eigenpairs, trace, diagonal and spectral density against the dense Hessian in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

from flatreg import checkpoint, measures
from tests.support.trained import (
    batch_loss,
    dense_hessian,
    digits,
    in_bfloat16_and_float32,
    trained,
)

KEY = jax.random.key(0)
EPS = float(np.finfo(np.float32).eps)


@functools.cache
def loss():
    """The loss over the digits in batches of 64, of which the last is smaller."""
    return measures.dataset_loss(batch_loss, digits(), batch_size=64)


def quadratic(matrix):
    matrix = jnp.asarray(matrix, jnp.float32)
    return lambda w: w @ matrix @ w / 2


@functools.cache
def eigenpairs(**options):
    """Eigenpairs of the Hessian of the trained network."""
    return jax.jit(functools.partial(measures.top_eigenpairs, **options))(loss(), trained(), KEY)


def rows(tree):
    """A stack of trees as a matrix, one row per tree."""
    return jax.vmap(lambda x: ravel_pytree(x)[0])(tree)


@functools.partial(jax.jit, static_argnames="which")
def all_six(matrix, which):
    return measures.top_eigenpairs(quadratic(matrix), jnp.ones(6), KEY, 6, which=which)


class TestEigenpairs:
    def test_the_five_largest_are_exact_after_20_products(self):
        expected = np.linalg.eigvalsh(dense_hessian())[::-1][:5]
        actual = eigenpairs(k=5, steps=20)
        np.testing.assert_allclose(actual.values, expected, atol=1e-5 * expected[0])
        assert actual.converged.all()

    @pytest.mark.slow
    @pytest.mark.nightly_except("LM-40")
    @pytest.mark.parametrize(("which", "steps"), [("SA", 150), ("LM", 40)])
    def test_which_selects_smallest_or_largest_magnitude(self, which, steps):
        """Converged pairs of the other ends of the spectrum are exact."""
        spectrum = np.linalg.eigvalsh(dense_hessian())
        order = spectrum if which == "SA" else spectrum[np.argsort(-np.abs(spectrum))]
        actual = eigenpairs(k=3, which=which, steps=steps)
        assert actual.converged.all()
        np.testing.assert_allclose(actual.values, order[:3], atol=1e-5 * spectrum[-1])

    def test_pairs_that_did_not_converge_are_marked(self):
        assert not eigenpairs(k=3, which="SA", steps=10).converged.all()

    @pytest.mark.slow
    def test_residuals_are_those_of_float64(self):
        """‖Hv − λv‖ agrees with float64 within a factor of 2, apart from rounding."""
        hessian = dense_hessian()
        actual = eigenpairs(k=20, steps=40)
        vectors = np.float64(rows(actual.vectors))
        error = vectors @ hessian - np.float64(actual.values)[:, None] * vectors
        expected, floor = np.linalg.norm(error, axis=1), 10 * EPS * np.linalg.norm(hessian, 2)
        residuals = np.float64(actual.residuals)
        near = (expected <= 2 * residuals + floor) & (residuals <= 2 * expected + floor)
        assert near.all()
        assert np.all(residuals >= expected / 10)  # also where they are only rounding error
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(20), atol=1e-5)

    @pytest.mark.slow
    def test_residuals_are_computed_from_products(self):
        """‖Cv − λv‖ shows that C is not symmetric, which Lanczos's own estimate does not."""
        a = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
        actual = measures.top_eigenpairs(
            lambda w: 0.0, jnp.zeros(30), KEY, 3, curvature=lambda f, w: lambda v: a @ v
        )
        vectors = np.float64(actual.vectors)
        expected = np.linalg.norm(
            vectors @ a.T - np.float64(actual.values)[:, None] * vectors, axis=1
        )
        assert expected.min() > 1
        np.testing.assert_allclose(actual.residuals, expected, rtol=1e-4)
        assert not actual.converged.any()

    @pytest.mark.slow
    def test_scale_gives_the_eigenvalues_of_the_scaled_hessian(self):
        """With T = |w|, the eigenvalues are those of THT."""
        t = np.abs(np.float64(ravel_pytree(trained())[0]))
        expected = np.linalg.eigvalsh(t[:, None] * dense_hessian() * t)[::-1][:3]
        absolute = functools.partial(jax.tree.map, jnp.abs)
        actual = measures.top_eigenpairs(loss(), trained(), KEY, 3, steps=30, scale=absolute)
        np.testing.assert_allclose(actual.values, expected, atol=1e-5 * expected[0])

    @pytest.mark.slow
    def test_restrict_gives_the_eigenvalues_of_a_diagonal_block(self):
        first = slice(0, 64 * 7 + 7)  # "hidden" is the first in the tree
        expected = np.linalg.eigvalsh(dense_hessian()[first, first])[::-1][:2]
        block = measures.restrict(loss(), trained(), lambda path: path.startswith("hidden/"))
        actual = measures.top_eigenpairs(*block, KEY, 2)
        np.testing.assert_allclose(actual.values, expected, atol=1e-5 * expected[0])
        assert set(actual.vectors) == {"hidden/bias", "hidden/kernel"}

    @pytest.mark.slow
    def test_gauss_newton_is_the_hessian_of_the_linearized_model(self):
        """G = JᵀMJ with the Jacobian J of the model and the Hessian M of the output loss."""
        with jax.enable_x64(True):
            x, w = np.random.default_rng(0).normal(size=(20, 3)), np.array([0.3, -1.0, 0.5])

            def model(w):
                return jnp.tanh(x @ w)

            def output_loss(z):
                return jnp.mean(jnp.cosh(z))

            jacobian = jax.jacobian(model)(w)
            matrix = jacobian.T @ jax.hessian(output_loss)(model(w)) @ jacobian
            curvature = measures.gauss_newton(model, output_loss)
            actual = measures.top_eigenpairs(lambda w: 0.0, w, KEY, 3, curvature=curvature)
            expected = np.linalg.eigvalsh(matrix)[::-1]
            np.testing.assert_allclose(actual.values, expected, rtol=1e-10)

    @pytest.mark.parametrize(
        "spectrum",
        [np.zeros(6), np.ones(6), [4, 0, 0, 0, 0, 0], [2, 2, 2, -1, -1, -1], [-3, -3, 0, 0, 0, 0]],
        ids=["zero", "identity", "rank one", "two values", "negative"],
    )
    @pytest.mark.parametrize("which", ["LA", "SA", "LM"])
    def test_a_breakdown_loses_no_eigenvalue(self, spectrum, which):
        """The Krylov space of a matrix with few distinct eigenvalues ends early; all are found."""
        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
        actual = all_six(jnp.asarray(rotation @ np.diag(spectrum) @ rotation.T, jnp.float32), which)
        np.testing.assert_allclose(np.sort(actual.values), np.sort(spectrum), atol=1e-5)
        assert actual.residuals.max() < 1e-5

    @pytest.mark.slow
    def test_saved_eigenvectors_are_a_start_that_saves_steps(self, tmp_path):
        before = eigenpairs(k=3, steps=30)
        checkpoint.save(tmp_path / "eigenvectors", before.vectors)
        saved = checkpoint.restore(tmp_path / "eigenvectors", before.vectors)
        again = measures.top_eigenpairs(loss(), trained(), KEY, 3, steps=4, start=saved)
        np.testing.assert_allclose(again.values, before.values, rtol=1e-5)
        assert again.converged.all()
        one = jax.tree.map(lambda x: x[0], saved)
        again = measures.top_eigenpairs(loss(), trained(), KEY, 1, steps=1, start=one)
        np.testing.assert_allclose(again.values, before.values[:1], rtol=1e-5)

    @pytest.mark.slow
    def test_bfloat16_parameters_are_measured_in_float32(self):
        both = in_bfloat16_and_float32(trained())
        actual, expected = (measures.top_eigenpairs(loss(), p, KEY).values for p in both)
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == jnp.float32


class TestTraceAndDiagonal:
    @pytest.mark.slow
    def test_without_probes_they_are_exact(self):
        """``probes=None`` gives the trace and the diagonal of the dense Hessian."""
        with jax.enable_x64(True):
            params = jax.tree.map(np.float64, trained())
            expected, scale = np.diag(dense_hessian()), np.abs(dense_hessian()).max()
            diagonal = jax.jit(functools.partial(measures.diagonal, probes=None))(loss(), params)
            flat = ravel_pytree(diagonal.value)[0]
            np.testing.assert_allclose(flat, expected, atol=1e-6 * scale)
            trace = jax.jit(functools.partial(measures.trace, probes=None))(loss(), params)
            np.testing.assert_allclose(trace.value, expected.sum(), rtol=1e-6)
            assert trace.standard_error == 0

    def test_a_t_interval_covers_the_trace(self):
        """With 64 probes the 95% interval covers the trace in 95 ± 4% of 200 draws."""
        a = np.random.default_rng(0).normal(size=(30, 30))
        f, keys = quadratic(a + a.T), jax.random.split(jax.random.key(1), 200)
        estimate = jax.vmap(lambda key: measures.trace(f, jnp.zeros(30), key, probes=64))(keys)
        t = (estimate.value - 2 * np.trace(a)) / estimate.standard_error
        covered = np.mean(np.abs(t) < stats.t.ppf(0.975, 63))
        assert abs(covered - 0.95) <= 0.04

    def test_the_standard_error_of_two_probes_is_unbiased(self):
        """The mean of its square over keys is the variance of the estimate."""
        a = np.random.default_rng(0).normal(size=(10, 10))
        f, keys = quadratic(a + a.T), jax.random.split(jax.random.key(1), 4000)
        for measure in (measures.trace, measures.diagonal):
            estimate = jax.vmap(lambda key, m=measure: m(f, jnp.zeros(10), key, probes=2))(keys)
            squares = np.mean(np.square(estimate.standard_error), axis=0)
            np.testing.assert_allclose(squares, np.var(estimate.value, axis=0), rtol=0.15)

    @pytest.mark.slow
    def test_estimates_are_within_their_standard_errors(self):
        """The squared z-scores of the entries of the diagonal have a mean near 1."""
        expected = np.diag(dense_hessian())
        trace = jax.jit(measures.trace)(loss(), trained(), KEY)
        assert abs(trace.value - expected.sum()) < 4 * trace.standard_error
        diagonal = jax.jit(measures.diagonal)(loss(), trained(), KEY)
        error = np.array(ravel_pytree(diagonal.standard_error)[0])
        z = (ravel_pytree(diagonal.value)[0] - expected)[error > 0] / error[error > 0]
        assert len(z) > 400
        assert 0.8 < np.mean(z**2) < 1.3
        assert abs(trace.value - sum(map(np.sum, jax.tree.leaves(diagonal.value)))) < 1e-3

    def test_deflation_of_all_eigenpairs_gives_the_exact_trace(self):
        """The trace is the sum of the given eigenvalues, and nothing is left to estimate."""
        a = np.random.default_rng(0).normal(size=(8, 8))
        f, origin = quadratic(a + a.T), jnp.zeros(8)
        pairs = measures.top_eigenpairs(f, origin, KEY, 8)
        trace = measures.trace(f, origin, KEY, probes=4, deflate=pairs)
        np.testing.assert_allclose(trace, (2 * np.trace(a), 0), rtol=1e-4, atol=1e-3)

    def test_as_many_lanczos_steps_as_weights_are_exact(self):
        a = np.random.default_rng(0).normal(size=(8, 8))
        for steps in (8, np.int64(8)):
            trace = measures.trace(quadratic(a + a.T), jnp.zeros(8), KEY, probes=4, deflate=steps)
            np.testing.assert_allclose(trace, (2 * np.trace(a), 0), rtol=1e-4, atol=1e-3)

    def test_lanczos_steps_leave_the_trace_unbiased(self):
        """The mean over keys is the trace, and the standard errors are those of the rest."""
        a = np.random.default_rng(0).normal(size=(10, 10))
        f, keys = quadratic(a + a.T), jax.random.split(jax.random.key(1), 2000)
        trace = functools.partial(measures.trace, f, jnp.zeros(10), probes=8, deflate=3)
        found = jax.vmap(trace)(keys)
        error = np.std(found.value) / len(keys) ** 0.5
        assert abs(np.mean(found.value) - 2 * np.trace(a)) < 4 * error
        squares = np.mean(np.square(found.standard_error))
        np.testing.assert_allclose(squares, np.var(found.value), rtol=0.15)

    @pytest.mark.parametrize("deflate", [0, 11, 2.5, "all"])
    def test_a_wrong_number_of_lanczos_steps_is_an_error(self, deflate):
        with pytest.raises((TypeError, ValueError), match="deflate must be"):
            measures.trace(quadratic(np.eye(10)), jnp.zeros(10), KEY, deflate=deflate)

    def test_a_traced_number_of_lanczos_steps_is_explained(self):
        loss_fn = quadratic(np.eye(10))
        with pytest.raises(TypeError, match=r"functools\.partial"):
            jax.jit(lambda m: measures.trace(loss_fn, jnp.zeros(10), KEY, deflate=m))(3)

    @pytest.mark.slow
    def test_deflation_reduces_the_error_of_the_trace(self):
        """Removing the ten largest eigenvalues, or 20 Lanczos steps, halves the standard error."""
        pairs = measures.top_eigenpairs(loss(), trained(), KEY, 10, steps=30)
        plain = jax.jit(measures.trace)(loss(), trained(), KEY)
        for deflate in (pairs, 20):
            trace = jax.jit(functools.partial(measures.trace, deflate=deflate))
            deflated = trace(loss(), trained(), KEY)
            assert abs(deflated.value - np.trace(dense_hessian())) < 4 * deflated.standard_error
            assert deflated.standard_error < plain.standard_error / 2


class TestDensity:
    @pytest.mark.slow
    def test_the_first_two_moments_are_correct(self):
        """Per probe vᵀHv/n and vᵀH²v/n; on average tr H/n and tr H²/n."""
        hessian, size, probes = dense_hessian(), 535, 16
        options = {"probes": probes, "steps": 30}
        density = jax.jit(functools.partial(measures.spectral_density, **options))(
            loss(), trained(), KEY
        )
        np.testing.assert_allclose(density.weights.sum(1), 1, rtol=1e-5)
        moments = [np.sum(density.weights * density.nodes**p, axis=1) for p in (1, 2)]
        for moment, power in zip(moments, (hessian, hessian @ hessian), strict=True):
            error = np.std(moment, ddof=1) / probes**0.5
            assert abs(moment.mean() - np.trace(power) / size) < 4 * error
        for key, first, second in zip(jax.random.split(KEY, probes), *moments, strict=True):
            v = np.float64(jax.random.rademacher(jax.random.split(key)[0], (size,)))
            product = hessian @ v
            np.testing.assert_allclose(first, v @ product / size, rtol=1e-5)
            np.testing.assert_allclose(second, product @ product / size, rtol=1e-5)

    def test_a_multiple_of_the_identity_has_one_peak(self):
        """The density of 2·1 on a grid is one Gaussian around 2."""
        density = measures.spectral_density(quadratic(2 * np.eye(9)), jnp.zeros(9), KEY, probes=2)
        grid = np.linspace(0, 4, 401)
        drawn = measures.density_on_grid(density, grid, 0.1)
        np.testing.assert_allclose(drawn, stats.norm.pdf(grid, 2, 0.1), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, w: measures.top_eigenpairs(f, w, KEY, 4), ValueError, "weights, 3, got 4"),
        (lambda f, w: measures.top_eigenpairs(f, w, KEY, 0), ValueError, "between 1 and"),
        (lambda f, w: measures.top_eigenpairs(f, w, KEY, steps=9), ValueError, "between k = 1 and"),
        (lambda f, w: measures.top_eigenpairs(f, w, KEY, which="LR"), ValueError, "LA, SA, LM"),
        (lambda f, w: measures.trace(f, w), ValueError, r"pass jax.random.key\(0\)"),
        (lambda f, w: measures.diagonal(f, w, KEY, probes=1), ValueError, "at least 2"),
        (lambda f, w: measures.spectral_density(f, w, KEY, probes=0), ValueError, "at least 1"),
        (lambda f, w: measures.trace(f, jnp.arange(3), KEY), TypeError, "leaf of dtype int32"),
        (lambda f, w: measures.trace(f, {}, KEY), ValueError, "no weights"),
        (lambda f, w: measures.restrict(f, {"a": w}, str.isdigit), ValueError, "paths are a"),
    ],
)
def test_errors_show_what_to_write(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda w: jnp.sum(w**2), jnp.ones(3))


@pytest.mark.slow
def test_the_blocks_of_a_network_are_measured_one_by_one():
    """The spectra of the diagonal blocks of the dense Hessian. Blocks may overlap."""
    h = np.array([[2.0, 1.0, 0.5], [1.0, 4.0, 0.3], [0.5, 0.3, 1.0]])

    def loss_fn(p):
        w = jnp.stack([p["a"]["w"], p["a"]["b"], p["c"]])
        return w @ h @ w / 2

    params = {"a": {"w": jnp.float32(1), "b": jnp.float32(2)}, "c": jnp.float32(3)}
    blocks = {
        "a": lambda path: path.startswith("a/"),
        "biases": lambda path: path == "a/b",
        "all": lambda path: True,
    }
    found = measures.per_block(measures.top_eigenpairs, loss_fn, params, KEY, blocks, which="SA")
    for name, part in (("a", [0, 1]), ("biases", [1]), ("all", [0, 1, 2])):
        expected = np.linalg.eigvalsh(h[np.ix_(part, part)])[0]
        np.testing.assert_allclose(found[name].values, [expected], rtol=1e-4)
    traces = measures.per_block(measures.trace, loss_fn, params, KEY, blocks, probes=None)
    assert [float(x.value) for x in traces.values()] == [6, 4, 7]
    with pytest.raises(ValueError, match="blocks is empty"):
        measures.per_block(measures.trace, loss_fn, params, KEY, {})
    with pytest.raises(ValueError, match="where is true for no leaf"):
        measures.per_block(measures.trace, loss_fn, params, KEY, {"x": lambda path: path == "x"})
