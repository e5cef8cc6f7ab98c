r"""Gram iteration: an upper bound on σ by repeated squaring, from matrix products alone.

For G = A*A and the rank r of A,

    σ(A)² = ‖G^(2ᵗ)‖^(1/2ᵗ) ≤ ‖G^(2ᵗ)‖_F^(1/2ᵗ) ≤ r^(1/2ᵗ⁺¹) σ(A)².

Hence each squaring brings the bound closer to σ from above. The speed of convergence does not
depend on the gaps between singular values.
"""

import functools
import math
from typing import Any, NamedTuple

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


def module_of(x: Any) -> Any:
    """Returns ``numpy`` for its own arrays and ``jax.numpy`` for all others."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def gram_bound(real: jax.Array, imag: jax.Array | None = None, slack: float = TIGHT) -> jax.Array:
    """Returns an upper bound on the largest singular value of all given matrices.

    Args:
      real: the real parts, with shape (…, m, n), an array of JAX or NumPy.
      imag: the imaginary parts, or None for real matrices.
      slack: the bound is at most 1 + ``slack`` times the largest singular value.
    """
    xp = module_of(real)
    if 0 in real.shape:
        return xp.zeros((), real.dtype)  # type: ignore[no-any-return]
    if real.shape[-1] > real.shape[-2]:
        # Transposing without conjugation leaves the singular values unchanged.
        real, imag = real.mT, None if imag is None else imag.mT
    largest = xp.max(xp.abs(real))
    if imag is not None:
        largest = xp.maximum(largest, xp.max(xp.abs(imag)))
    safe = xp.where(largest == 0, 1, largest)
    start = _normalized(*_squared(real / safe, None if imag is None else imag / safe))

    def step(t: Any, power: _Power) -> _Power:
        x, y, size = _normalized(*_squared(power.real, power.imag))
        return _Power(x, y, power.bound * size ** (0.5 ** xp.asarray(t, size.dtype)))

    # After t squarings the bound on σ is at most r^(1/2ᵗ⁺²) times too large, with r ≤ n.
    least_power = math.log(real.shape[-1]) / (4 * math.log1p(slack))
    squarings = math.ceil(math.log2(max(least_power, 1)))
    if xp is np:
        power = functools.reduce(lambda power, t: step(t, power), range(1, squarings + 1), start)
    else:
        power = jax.lax.fori_loop(1, squarings + 1, step, start)
    rounding = 1 + 16 * float(np.finfo(real.dtype).eps)  # covers rounding errors in the products
    bound: jax.Array = rounding * largest * xp.sqrt(xp.max(power.bound))
    return bound


def _squared(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Returns A*A for A = x + iy in three real products; for a Hermitian A this is A²."""
    product: Any = matmul if module_of(x) is jnp else np.matmul
    if y is None:
        return product(x.mT, x), None
    mixed = product(x.mT, y)
    return product(x.mT, x) + product(y.mT, y), mixed - mixed.mT


def _normalized(x: jax.Array, y: jax.Array | None) -> _Power:
    """Divides matrices by their Frobenius norms, which are returned as ``bound``."""
    xp = module_of(x)
    squares = x**2 if y is None else x**2 + y**2
    size = xp.sqrt(xp.sum(squares, (-2, -1), keepdims=True))
    safe = xp.where(size == 0, 1, size)
    return _Power(x / safe, None if y is None else y / safe, size[..., 0, 0])
