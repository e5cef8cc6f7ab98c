"""Golub–Kahan Lanczos iteration with full reorthogonalization, for the largest singular value."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core import tree as _tree
from flatreg.lipschitz.operators.linear_maps import LinearMap


def largest_by_lanczos(
    kernel: jax.Array, linear_map: LinearMap, steps: int, key: jax.Array | None
) -> jax.Array:
    """‖A(v)‖ at Golub–Kahan's v, with A scaled by max |kernel| so that no square overflows."""
    largest = jnp.max(jnp.abs(kernel), initial=0)
    scaled = kernel / jnp.where(largest == 0, 1, largest)
    shape = linear_map.input_shape_of(kernel)
    x = jax.ShapeDtypeStruct(shape, kernel.dtype)

    def product(x: jax.Array) -> jax.Array:
        return linear_map.apply(scaled, x)

    y = jax.eval_shape(product, x)
    if 0 in (x.size, y.size):
        return largest * 0
    adjoint = jax.linear_transpose(product, x)
    steps = min(steps, x.size)
    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)

    noise = 100 * float(np.finfo(x.dtype).eps)

    def orthogonal(basis: jax.Array, w: jax.Array) -> jax.Array:
        """The unit vector along what the basis leaves of w; zero if that is only rounding."""
        rest = w
        for _ in range(2):  # twice is enough
            rest = rest - _tree.matmul(_tree.matmul(basis, rest), basis)
        return jnp.where(_tree.norm(rest) <= noise * _tree.norm(w), 0, _tree.unit(rest))

    def step(i: jax.Array, carry: Any) -> Any:
        rights, lefts, right, matrix = carry
        rights = rights.at[i].set(right)
        image = product(right.reshape(shape)).ravel()
        lefts = lefts.at[i].set(left := orthogonal(lefts, image))
        matrix = matrix.at[:, i].set(_tree.matmul(lefts, image))
        following = orthogonal(rights, adjoint(left.reshape(y.shape))[0].ravel())
        # Where the Krylov space has ended, go on with another start.
        fresh = orthogonal(rights, jax.random.normal(keys[i], (x.size,), x.dtype))
        return rights, lefts, jnp.where(following.any(), following, fresh), matrix

    start = _tree.unit(jax.random.normal(keys[-1], (x.size,), x.dtype))
    empty = [jnp.zeros(size, x.dtype) for size in ((steps, x.size), (steps, y.size))]
    carry = *empty, start, jnp.zeros((steps, steps), x.dtype)
    rights, _, _, matrix = jax.lax.fori_loop(0, steps, step, carry)
    weights = jnp.linalg.svd(matrix)[2][0]
    found = _tree.unit(_tree.matmul(weights, rights)).reshape(shape)
    norm: jax.Array = jnp.linalg.norm(product(found))
    return largest * norm
