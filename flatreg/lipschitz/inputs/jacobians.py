"""The Jacobian of one example with respect to its input, and its largest singular value."""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul, norm, unit, widened
from flatreg.lipschitz.batch_functions import BatchFn, check_outputs


def jacobian(f: BatchFn, x: jax.Array, *args: Any) -> jax.Array:
    """Returns the Jacobian of one example, with shape (outputs, inputs), in at least float32."""
    batch_of_one = jax.tree.map(lambda a: a[None], args)

    def outputs(x: jax.Array) -> jax.Array:
        y = f(x[None], *batch_of_one)
        check_outputs(y.shape, 1)
        return y.reshape(-1)

    y, pull = jax.vjp(outputs, x)
    (rows,) = jax.vmap(pull)(jnp.eye(y.size, dtype=y.dtype))
    matrix: jax.Array = widened(rows.reshape(y.size, x.size))
    return matrix


def top_singular_value(matrix: jax.Array) -> jax.Array:
    """Returns σ of a matrix J with few rows as ‖uJ‖, which is at most σ even if u is inexact."""
    return norm(matmul(top_output(matrix), matrix))


def top_output(matrix: jax.Array) -> jax.Array:
    """Returns the unit vector u with the largest ‖uJ‖. It is constant under differentiation."""
    matrix = jax.lax.stop_gradient(matrix)
    _, outputs = jnp.linalg.eigh(matmul(matrix, matrix.T))
    # Normalized again, because an error in the norm of u would multiply σ.
    top: jax.Array = unit(outputs[:, -1])
    return top


def safe_sqrt(squares: jax.Array) -> jax.Array:
    """Returns √x, with derivative zero at x = 0, where √ is not differentiable."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
