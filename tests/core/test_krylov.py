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


@every_matrix
@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6)], ids=str)
def test_the_largest_singular_value_is_exact_after_n_steps(matrix, shape, x64):
    a = matrix[: shape[0], : shape[1]]
    x = jax.ShapeDtypeStruct(shape[1:], jnp.float64)
    value = largest_singular_value(lambda v: jnp.asarray(a) @ v, x, 10, KEY)
    np.testing.assert_allclose(value, np.linalg.norm(a, 2), atol=1e-12)


def test_few_steps_give_a_lower_bound():
    a = MATRICES["random"].astype(np.float32)
    x = jax.ShapeDtypeStruct((6,), jnp.float32)
    values = [float(largest_singular_value(lambda v: a @ v, x, n, KEY)) for n in (1, 2, 3)]
    assert values == sorted(values)
    assert values[-1] <= np.linalg.norm(a, 2) * (1 + 1e-6)
