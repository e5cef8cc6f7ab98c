r"""Gram iteration: an upper bound on σ by repeated squaring, from matrix products alone.

For G = A*A and the rank r of A,

    σ(A)² = ‖G^(2ᵗ)‖^(1/2ᵗ) ≤ ‖G^(2ᵗ)‖_F^(1/2ᵗ) ≤ r^(1/2ᵗ⁺¹) σ(A)².

Hence each squaring brings the bound closer to σ from above. The speed of convergence does not
depend on the gaps between singular values.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import matmul

TIGHT = 1e-3  # the default for the largest relative error of the bound


class _Power(NamedTuple):
    """A power of G, divided by its Frobenius norm, and the bound on σ(A)² from it.

    Attributes:
      real: the real part of the power.
      imag: the imaginary part, or None for real matrices.
      bound: ‖G^(2ᵗ)‖_F^(1/2ᵗ).
    """

    real: jax.Array
    imag: jax.Array | None
    bound: jax.Array


def gram_bound(real: jax.Array, imag: jax.Array | None = None, slack: float = TIGHT) -> jax.Array:
    """Returns an upper bound on the largest singular value of all given matrices.

    Args:
      real: the real parts, with shape (…, m, n).
      imag: the imaginary parts, or None for real matrices.
      slack: the bound is at most 1 + ``slack`` times the largest singular value.
    """
    if 0 in real.shape:
        return jnp.zeros((), real.dtype)
    if real.shape[-1] > real.shape[-2]:
        # Transposing without conjugation leaves the singular values unchanged.
        real, imag = real.mT, None if imag is None else imag.mT
    largest = jnp.max(jnp.abs(real))
    if imag is not None:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(imag)))
    safe = jnp.where(largest == 0, 1, largest)
    start = _normalized(*_squared(real / safe, None if imag is None else imag / safe))

    def step(t: jax.Array, power: _Power) -> _Power:
        x, y, size = _normalized(*_squared(power.real, power.imag))
        return _Power(x, y, power.bound * size ** (0.5 ** t.astype(size.dtype)))

    # After t squarings the bound on σ is at most r^(1/2ᵗ⁺²) times too large, with r ≤ n.
    least_power = math.log(real.shape[-1]) / (4 * math.log1p(slack))
    squarings = math.ceil(math.log2(max(least_power, 1)))
    power = jax.lax.fori_loop(1, squarings + 1, step, start)
    rounding = 1 + 16 * float(np.finfo(real.dtype).eps)  # covers rounding errors in the products
    return rounding * largest * jnp.sqrt(jnp.max(power.bound))


def _squared(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Returns A*A for A = x + iy in three real products; for a Hermitian A this is A²."""
    if y is None:
        return matmul(x.mT, x), None
    mixed = matmul(x.mT, y)
    return matmul(x.mT, x) + matmul(y.mT, y), mixed - mixed.mT


def _normalized(x: jax.Array, y: jax.Array | None) -> _Power:
    """Divides matrices by their Frobenius norms, which are returned as ``bound``."""
    squares = x**2 if y is None else x**2 + y**2
    size = jnp.sqrt(jnp.sum(squares, (-2, -1), keepdims=True))
    safe = jnp.where(size == 0, 1, size)
    return _Power(x / safe, None if y is None else y / safe, size[..., 0, 0])
