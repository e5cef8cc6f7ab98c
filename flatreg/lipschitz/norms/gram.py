r"""Gram iteration: an upper bound of σ by squaring, on matrix products alone.

For G = A*A, σ(A)² = ‖G^(2ᵗ)‖^(1/2ᵗ) ≤ ‖G^(2ᵗ)‖_F^(1/2ᵗ) ≤ r^(1/2ᵗ⁺¹) σ(A)²,
with r the rank: squaring again and again tends to σ from above, whatever the gaps.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import matmul

TIGHT = 1e-3  # how far the bound of a single matrix may be above


def gram_bound(real: jax.Array, imag: jax.Array | None = None, slack: float = TIGHT) -> jax.Array:
    """Bounds the largest σ of matrices (…, m, n), at most by a factor 1 + ``slack`` above."""

    def square(x: jax.Array, y: jax.Array | None) -> Any:
        """A*A of A = x + iy, in three real products: the square of a Hermitian A."""
        if y is None:
            return matmul(x.mT, x), None
        mixed = matmul(x.mT, y)
        return matmul(x.mT, x) + matmul(y.mT, y), mixed - mixed.mT

    def divided(x: Any, y: Any) -> tuple[Any, Any, jax.Array]:
        squares = x**2 if y is None else x**2 + y**2
        size = jnp.sqrt(jnp.sum(squares, (-2, -1), keepdims=True))
        safe = jnp.where(size == 0, 1, size)
        return x / safe, None if y is None else y / safe, size[..., 0, 0]

    if 0 in real.shape:
        return jnp.zeros((), real.dtype)
    if real.shape[-1] > real.shape[-2]:
        real, imag = real.mT, None if imag is None else imag.mT  # conjugation changes no σ
    largest = jnp.max(jnp.abs(real))
    if imag is not None:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(imag)))
    safe = jnp.where(largest == 0, 1, largest)
    x, y = real / safe, None if imag is None else imag / safe
    x, y, bound = divided(*square(x, y))
    squarings = math.log(real.shape[-1]) / (4 * math.log1p(slack))

    def body(t: jax.Array, carry: Any) -> Any:
        x, y, bound = carry
        x, y, size = divided(*square(x, y))
        return x, y, bound * size ** (0.5 ** t.astype(bound.dtype))

    count = math.ceil(math.log2(max(squarings, 1)))
    bound = jax.lax.fori_loop(1, count + 1, body, (x, y, bound))[2]
    rounding = 1 + 16 * float(np.finfo(real.dtype).eps)  # what products in this dtype may lose
    return rounding * largest * jnp.sqrt(jnp.max(bound))
