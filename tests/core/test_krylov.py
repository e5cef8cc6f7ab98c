"""Lanczos iterations against NumPy, with and without a breakdown of the Krylov space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg._core.krylov import largest_singular_value, tridiagonalize

KEY = jax.random.key(0)
MATRICES = {
    "random": np.random.default_rng(0).normal(size=(6, 6)),
    "identity": np.eye(6),
    "zero": np.zeros((6, 6)),
    "rank one": np.ones((6, 6)),
}
every_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


@every_matrix
def test_the_basis_is_orthonormal_and_tridiagonalizes(matrix, x64):
    """QQᵀ = 1 and QAQᵀ = T after n steps, so that the Ritz values are all the eigenvalues."""
    a = matrix + matrix.T
    krylov = tridiagonalize(lambda v: a @ v, jnp.arange(1.0, 7.0), 6, KEY)
    basis, off = np.array(krylov.basis), np.diag(krylov.off_diagonal[:-1], 1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-12)
    expected = np.diag(krylov.diagonal) + off + off.T
    np.testing.assert_allclose(basis @ a @ basis.T, expected, atol=1e-12)
    np.testing.assert_allclose(krylov.eigh()[0], np.linalg.eigvalsh(a), atol=1e-12)


@pytest.mark.slow
@pytest.mark.nightly_except("120_1-*")
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("spectrum", [np.ones(120), np.r_[[3.0] * 4, 2.0, np.ones(115)]], ids=len)
def test_the_basis_stays_orthonormal_through_many_breakdowns(spectrum, dtype, x64):
    """What is left of a product is then rounding error, often within the span of the basis."""
    for seed in range(3):
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(120, 120)))[0]
        a = jnp.asarray(rotation * spectrum @ rotation.T, dtype)
        start = jax.random.normal(jax.random.key(seed), (120,), dtype)
        krylov = tridiagonalize(lambda v, a=a: a @ v, start, 48, KEY)
        tolerance = 100 * float(np.finfo(dtype).eps)
        basis = np.array(krylov.basis)
        np.testing.assert_allclose(basis @ basis.T, np.eye(48), atol=tolerance)
        assert krylov.eigh()[0].max() <= spectrum.max() + 10 * tolerance


def test_some_steps_in_the_complement_of_some_vectors(x64):
    """The Ritz values are then those of PAP, with the number of steps known at run time."""
    a = MATRICES["random"] + MATRICES["random"].T
    values, vectors = np.linalg.eigh(a)
    fixed = jnp.asarray(np.stack([vectors[:, 5], np.zeros(6), vectors[:, 2]]))

    @jax.jit
    def run(count):
        krylov = tridiagonalize(
            lambda v: a @ v, jnp.arange(1.0, 7.0), 6, KEY, products=count, orthogonal_to=fixed
        )
        ritz_values, ritz_vectors = krylov.eigh()
        return krylov, ritz_values, krylov.residuals(ritz_vectors)

    krylov, ritz_values, residuals = run(4)
    np.testing.assert_allclose(ritz_values[:4], values[[0, 1, 3, 4]], atol=1e-12)
    np.testing.assert_allclose(residuals[:4], 0, atol=1e-12)
    np.testing.assert_allclose(krylov.basis @ fixed.T, 0, atol=1e-12)
    krylov, ritz_values, residuals = run(2)
    basis = np.array(krylov.basis)
    np.testing.assert_allclose(basis @ basis.T, np.diag([1, 1, 0, 0, 0, 0]), atol=1e-12)
    found, t = np.linalg.eigh(basis[:2] @ a @ basis[:2].T)
    np.testing.assert_allclose(ritz_values[:2], found, atol=1e-12)
    ritz = t.T @ basis[:2]
    expected = np.linalg.norm(ritz @ a - found[:, None] * ritz, axis=1)
    np.testing.assert_allclose(residuals[:2], expected, rtol=1e-10)


def test_a_start_close_to_a_given_vector_becomes_orthogonal(x64):
    """The first projection leaves a part of the size of the rounding error, the second none."""
    a = MATRICES["random"] + MATRICES["random"].T
    fixed = jnp.asarray(np.linalg.eigh(a)[1].T[1:3])
    start = fixed[0] - 2 * fixed[1] + 1e-9 * jnp.arange(6.0)
    krylov = tridiagonalize(lambda v: a @ v, start, 3, KEY, orthogonal_to=fixed)
    np.testing.assert_allclose(krylov.basis @ fixed.T, 0, atol=1e-12)


@pytest.mark.nightly_except("(6, 3)-*", "(3, 6)-random")
@every_matrix
@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6)], ids=str)
def test_the_largest_singular_value_is_exact_after_n_steps(matrix, shape, x64):
    a = matrix[: shape[0], : shape[1]]
    x = jax.ShapeDtypeStruct(shape[1:], jnp.float64)
    value = largest_singular_value(lambda v: jnp.asarray(a) @ v, x, 10, KEY)
    np.testing.assert_allclose(value, np.linalg.norm(a, 2), atol=1e-12)


@pytest.mark.slow
def test_few_steps_give_a_lower_bound():
    a = MATRICES["random"].astype(np.float32)
    x = jax.ShapeDtypeStruct((6,), jnp.float32)
    values = [float(largest_singular_value(lambda v: a @ v, x, n, KEY)) for n in (1, 2, 3)]
    assert values == sorted(values)
    assert values[-1] <= np.linalg.norm(a, 2) * (1 + 1e-6)
