"""Lanczos iteration that goes on with a new vector where the Krylov space ends.

matfree's is not guarded: of a zero operator it makes NaN, of the identity garbage. Here a vector is
orthogonalised twice against all before it, and what is left is compared with rounding noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import matmul, norm, unit


class Tridiagonal(NamedTuple):
    """Q, (steps, n) with orthonormal rows, and T = QAQᵀ by its diagonals (steps,) and (steps,)."""

    basis: jax.Array
    diagonal: jax.Array
    off_diagonal: jax.Array

    def eigh(self) -> tuple[jax.Array, jax.Array]:
        """Ritz values, ascending, and their vectors in the basis as columns."""
        off = jnp.diag(self.off_diagonal[:-1], 1)
        values, vectors = jnp.linalg.eigh(jnp.diag(self.diagonal) + off + off.T)
        return values, vectors


def tridiagonalize(
    matvec: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int, key: jax.Array
) -> Tridiagonal:
    """``steps`` ≤ n products from ``start``; ``key`` draws the vectors that go on after an end."""
    noise = float(np.finfo(start.dtype).eps)

    def orthogonal(basis: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(2):  # twice is enough
            w = w - matmul(basis.T, matmul(basis, w))
        return w

    def step(i: jax.Array, carry: tuple[Tridiagonal, jax.Array, jax.Array]) -> Any:
        (basis, diagonal, off_diagonal), q, largest = carry
        basis = basis.at[i].set(q)
        w = matvec(q)
        a = matmul(q, w)
        largest = jnp.maximum(largest, norm(w))
        w = orthogonal(basis, w)
        b = norm(w)
        ended = b <= noise * largest
        fresh = jax.random.normal(jax.random.fold_in(key, i), q.shape, q.dtype)
        q = unit(jnp.where(ended, orthogonal(basis, unit(fresh)), w))
        b = jnp.where(ended, 0, b)
        return Tridiagonal(basis, diagonal.at[i].set(a), off_diagonal.at[i].set(b)), q, largest

    empty = Tridiagonal(
        jnp.zeros((steps, start.size), start.dtype),
        jnp.zeros(steps, start.dtype),
        jnp.zeros(steps, start.dtype),
    )
    init = empty, unit(start), jnp.zeros((), start.dtype)
    tridiagonal: Tridiagonal = jax.lax.fori_loop(0, steps, step, init)[0]
    return tridiagonal
