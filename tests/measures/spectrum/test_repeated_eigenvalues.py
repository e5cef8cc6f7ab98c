"""``top_eigenpairs`` lists repeated eigenvalues with their multiplicities, in few products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatreg import measures
from flatreg.measures.spectrum import eigenpairs
from flatreg.measures.spectrum.restarts import search

KEY = jax.random.key(0)
SIZE = 60
ORDERS = {"LA": lambda x: -x, "SA": lambda x: x, "LM": lambda x: -np.abs(x)}


def padded(*outer):
    """Some eigenvalues, and random ones in (−1, 1) up to 60."""
    inner = np.random.default_rng(0).uniform(-1, 1, SIZE - len(outer))
    return np.concatenate([outer, inner])


SPECTRA = {
    "four and three": padded(3, 3, 3, 3, 2, 2, 2),
    "both ends": padded(3, 3, 3, -4, -4, -4, -4, 2),
    "all negative": padded(3, 3, 3, 3, 2, 2, 2) - 5,
    "pairs": np.repeat(1 / (1 + np.arange(SIZE // 2)) ** 1.5, 2),
    "rank six": np.array([5.0] * 3 + [2.0] * 3 + [0.0] * (SIZE - 6)),
    "identity": np.ones(SIZE),
    "zero": np.zeros(SIZE),
    "nothing repeated": padded(9, 8, 7, 6, 5, 4, 3, 2, -9, -8, -7, -6, -5, -4, -3),
}
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)


def first(k, values, which):
    """The first k of some values in the order of ``which``."""
    return np.array(values)[np.argsort(ORDERS[which](np.array(values)))][:k]


def with_spectrum(spectrum):
    """A matrix with given eigenvalues, and its eigenvectors as columns."""
    size = len(spectrum)
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    return vectors * spectrum @ vectors.T, vectors


@functools.partial(jax.jit, static_argnames=("k", "which", "steps"))
def top(matrix, key=KEY, k=1, which="LA", steps=None, start=None):
    """The eigenpairs of a matrix, as those of a quadratic loss."""
    origin = jnp.zeros(len(matrix), matrix.dtype)
    options = {"which": which, "steps": steps, "start": start}
    return measures.top_eigenpairs(lambda w: w @ matrix @ w / 2, origin, key, k, **options)


def assert_top(pairs, spectrum, which, atol=1e-5):
    """The list is the first k of the spectrum with multiplicities, and says so."""
    values = np.array(pairs.values)
    largest = np.abs(spectrum).max()
    expected = ORDERS[which](first(len(values), spectrum, which))
    np.testing.assert_allclose(ORDERS[which](values), expected, atol=atol * largest)
    assert pairs.converged.all()
    vectors = jax.vmap(lambda x: ravel_pytree(x)[0])(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-5)


@pytest.mark.nightly_except("float32-5-*")
@every_spectrum
@pytest.mark.parametrize("k", [5, 12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_are_listed_with_multiplicities(spectrum, k, dtype, x64):
    matrix = jnp.asarray(with_spectrum(spectrum)[0], dtype)
    pairs = top(matrix, k=k, steps=40)
    # With k = 12 some of the random eigenvalues belong to the list, which need not converge.
    if k == 5 or len(np.unique(spectrum)) < 40:
        assert_top(pairs, spectrum, "LA")
    assert pairs.values.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four and three", "both ends", "rank six", "identity"])
@pytest.mark.parametrize("which", ["SA", "LM"])
def test_the_other_orders_count_multiplicities_too(name, which):
    sign = -1 if which == "SA" else 1
    matrix = jnp.asarray(sign * with_spectrum(SPECTRA[name])[0], jnp.float32)
    assert_top(top(matrix, k=5, which=which), sign * SPECTRA[name], which)


@pytest.mark.nightly_except("15-LA-*", "6-SA-*")
@every_spectrum
@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("steps", [6, 15])
def test_converged_pairs_have_their_rank_in_the_spectrum(spectrum, which, steps):
    """Also if the steps do not suffice, the i-th pair is the i-th eigenvalue, or not converged."""
    matrix = jnp.asarray(with_spectrum(spectrum)[0], jnp.float32)
    for seed in range(5):
        pairs = top(matrix, jax.random.key(seed), k=5, which=which, steps=steps)
        error = ORDERS[which](np.array(pairs.values)) - ORDERS[which](first(5, spectrum, which))
        assert np.all(np.abs(error)[pairs.converged] <= 2e-3 * np.abs(spectrum).max())


def test_pairs_behind_a_missing_one_have_not_converged(monkeypatch):
    """The number of runs is limited. The last one may still find an eigenvalue, here 2.5."""

    def interrupted(*args):
        return search(*args)._replace(outermost=jnp.float32(-2.5))

    monkeypatch.setattr(eigenpairs, "search", interrupted)
    spectrum = SPECTRA["four and three"]
    loss_fn = lambda w: jnp.sum(spectrum * w**2) / 2  # noqa: E731
    pairs = measures.top_eigenpairs(loss_fn, jnp.ones(SIZE), KEY, 6)
    np.testing.assert_allclose(pairs.values, spectrum[:6], rtol=1e-5)
    assert pairs.converged.tolist() == [True] * 4 + [False] * 2


@pytest.mark.slow
def test_gauss_newton_of_softmax_regression_at_zero():
    """G = (diag(p) − ppᵀ)⊗XᵀX/n with equal p repeats the eigenvalues C − 1 times."""
    x = np.random.default_rng(2).normal(size=(50, 12)) * 0.8 ** np.arange(12)
    with jax.enable_x64(True):
        for classes in (3, 4):
            labels = jnp.arange(50) % classes

            def model(w, classes=classes):
                return x @ w.reshape(12, classes)

            def output_loss(z, labels=labels):
                return jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(50), labels])

            w = jnp.zeros(12 * classes)
            expected = np.kron(np.linalg.eigvalsh(x.T @ x / 50) / classes, [1] * (classes - 1))
            options = {"curvature": measures.gauss_newton(model, output_loss)}
            pairs = measures.top_eigenpairs(lambda w: 0.0, w, KEY, 6, **options)
            assert_top(pairs, expected, "LA")
            hessian = measures.top_eigenpairs(lambda w, f=output_loss: f(model(w)), w, KEY, 6)
            assert_top(hessian, expected, "LA")


@pytest.mark.slow
def test_identical_hidden_units_repeat_eigenvalues():
    """Five equal units can be permuted, so that eigenvalues of multiplicity four occur."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(40, 6)), random.normal(size=40)
    with jax.enable_x64(True):
        params = {
            "in": jnp.asarray(np.repeat(random.normal(size=(6, 1)), 5, axis=1)),
            "out": jnp.full(5, 0.7),
        }

        def loss_fn(p):
            return jnp.mean((jnp.tanh(x @ p["in"]) @ p["out"] - y) ** 2)

        flat, unravel = ravel_pytree(params)
        spectrum = np.linalg.eigvalsh(jax.hessian(lambda w: loss_fn(unravel(w)))(flat))
        assert np.sum(np.abs(np.diff(first(8, spectrum, "LM"))) < 1e-9) >= 3
        for which in ("LA", "LM"):
            pairs = measures.top_eigenpairs(loss_fn, params, KEY, 8, which=which, steps=28)
            assert_top(pairs, spectrum, which)


def test_the_scaled_hessian_counts_multiplicities():
    spectrum, t = SPECTRA["four and three"], np.linspace(0.5, 2, SIZE)
    loss_fn = lambda w: jnp.sum(spectrum / t**2 * w**2) / 2  # noqa: E731
    pairs = measures.top_eigenpairs(loss_fn, jnp.ones(SIZE), KEY, 6, scale=lambda _: jnp.array(t))
    assert_top(pairs, spectrum, "LA")


class TestStart:
    """A start in an invariant subspace hides no larger eigenvalue."""

    spectrum = padded(5, 4, 4, 3, 2, 2)

    @pytest.mark.nightly_except("k-2")
    @pytest.mark.parametrize("k", [1, 2, 5])
    @pytest.mark.parametrize("steps", ["k", 20])
    def test_an_eigenvector_of_a_small_eigenvalue(self, k, steps):
        matrix, vectors = with_spectrum(self.spectrum)
        start = jnp.asarray(vectors[:, 30], jnp.float32)
        pairs = top(jnp.asarray(matrix, jnp.float32), k=k, steps=k if steps == "k" else steps,
                    start=start)  # fmt: skip
        wrong = np.abs(np.array(pairs.values) - first(k, self.spectrum, "LA")) > 1e-2
        assert not np.any(wrong & pairs.converged)
        if steps == 20:
            assert_top(pairs, self.spectrum, "LA")

    @pytest.mark.slow
    def test_a_stack_that_lacks_the_largest(self):
        matrix, vectors = with_spectrum(self.spectrum)
        start = jnp.asarray(vectors[:, [1, 3, 4]].T, jnp.float32)
        pairs = top(jnp.asarray(matrix, jnp.float32), k=3, steps=20, start=start)
        assert_top(pairs, self.spectrum, "LA")

    @pytest.mark.slow
    def test_all_eigenvectors_of_a_repeated_eigenvalue(self):
        """The sum of the stack is one eigenvector, and the list is found again."""
        matrix = jnp.asarray(with_spectrum(self.spectrum)[0], jnp.float32)
        before = top(matrix, k=5)
        assert_top(top(matrix, k=5, steps=10, start=before.vectors), self.spectrum, "LA")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("k", "steps"),
    [(5, 6), (1, 1), *(pytest.param(*x, marks=pytest.mark.nightly) for x in
                       ((5, 5), (6, 6), (4, 5), (1, 5)))],
)  # fmt: skip
def test_lists_up_to_the_whole_spectrum(k, steps):
    spectrum = np.array([2.0, 2, 2, -1, -1, -1])
    matrix = jnp.asarray(with_spectrum(spectrum)[0], jnp.float32)
    for which in ORDERS:
        assert_top(top(matrix, k=k, steps=steps, which=which), spectrum, which)


def products(spectrum, k, **options):
    """The number of products with the matrix."""
    matrix, calls = jnp.asarray(with_spectrum(spectrum)[0], jnp.float32), []

    def curvature(loss_fn, params):
        def product(v):
            jax.debug.callback(lambda: calls.append(1))
            return matrix @ v

        return product

    origin = jnp.zeros(len(spectrum))
    pairs = measures.top_eigenpairs(lambda w: 0.0, origin, KEY, k, curvature=curvature, **options)
    assert_top(pairs, spectrum, "LA")
    jax.effects_barrier()
    return len(calls)


@pytest.mark.slow
def test_a_list_without_repetition_costs_one_short_run():
    """``steps`` + max(10, steps/2, k) + k products, and ``steps`` + k for all steps."""
    spectrum = SPECTRA["nothing repeated"]
    assert products(spectrum, 5) == 20 + 10 + 5
    assert products(spectrum, 2, steps=30) == 30 + 15 + 2
    assert products(spectrum, 5, steps=SIZE) == SIZE + 5
    assert products(SPECTRA["four and three"], 5) <= 20 + 10 + 5 * 20 + 5


@pytest.mark.slow
def test_values_can_be_differentiated():
    """∂λ = vᵀ(∂H)v, for the parameters and for what the loss closes over."""
    w, c = jnp.linspace(1, 2, 30), jnp.linspace(1, 4, 30)

    def total(w, c):
        pairs = measures.top_eigenpairs(lambda w: jnp.sum(c * w**4) / 12, w, KEY, 2)
        return jnp.sum(pairs.values)  # the last two of cw²

    for actual, expected in zip(
        jax.grad(total, argnums=(0, 1))(w, c), (2 * c * w, w**2), strict=True
    ):
        np.testing.assert_allclose(actual, np.where(np.arange(30) < 28, 0, expected), atol=0.05)
