r"""Gram iteration: an upper bound on σ by repeated squaring, from matrix products alone.

For G = A*A and the rank r of A,

    σ(A)² = ‖G^(2ᵗ)‖^(1/2ᵗ) ≤ ‖G^(2ᵗ)‖_F^(1/2ᵗ) ≤ r^(1/2ᵗ⁺¹) σ(A)².

Hence each squaring brings the bound closer to σ from above. The speed of convergence does not
depend on the gaps between singular values.

**Rounding.** Every sum and product has a relative error of at most ε, which is twice the unit
roundoff. If at most k of them contribute to an entry of the computed product P of N* and N, then
|P − N*N| ≤ ((1 + ε)ᵏ − 1) |N|ᵀ|N|, entry by entry. Therefore

    ‖N‖² = ‖N*N‖ ≤ ‖P‖ + ((1 + ε)ᵏ − 1) ‖|N|ᵀ|N|‖_∞.

This inequality is applied once per product, from the last one back to A. Between the products, the
matrices are only divided by powers of two, which is exact. Long sums are computed in blocks, which
makes k about 2√n for sums of n terms. Subnormal numbers count as zero, as in XLA.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import matmul

TIGHT = 1e-3  # the default for the largest relative error of the bound, apart from rounding
SHORT = 64  # Sums of at most this many terms are not divided into blocks.


class _Matrix(NamedTuple):
    """A matrix N, or several.

    Attributes:
      real: the real part.
      imag: the imaginary part, or None for real matrices.
    """

    real: jax.Array
    imag: jax.Array | None


class _Product(NamedTuple):
    """What is known about a product: ‖N‖² ≤ ``scale`` · ‖N′‖ + ``error``.

    Attributes:
      scale: the power of two by which the computed N*N was divided. The quotient is N′.
      error: a bound on the rounding errors of N*N.
    """

    scale: jax.Array
    error: jax.Array


def module_of(x: Any) -> Any:
    """Returns ``numpy`` for its own arrays and ``jax.numpy`` for all others."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def eps_of(x: Any) -> float:
    """Returns ε of the dtype of an array."""
    return float(np.finfo(x.dtype).eps)


def gram_bound(real: jax.Array, imag: jax.Array | None = None, slack: float = TIGHT) -> jax.Array:
    """Returns an upper bound on the largest singular value of all given matrices.

    The bound also holds if the entries of the matrices have relative errors of at most ε.

    Args:
      real: the real parts, with shape (…, m, n), an array of JAX or NumPy.
      imag: the imaginary parts, or None for real matrices.
      slack: the bound is at most 1 + ``slack`` times the largest singular value, apart from the
        margin for rounding errors.
    """
    xp = module_of(real)
    if 0 in real.shape:
        return xp.zeros((), real.dtype)  # type: ignore[no-any-return]
    if real.shape[-1] > real.shape[-2]:
        # Transposing without conjugation leaves the singular values unchanged.
        real, imag = real.mT, None if imag is None else imag.mT
    columns = real.shape[-1]
    # After t products the bound on σ is at most r^(1/2ᵗ⁺¹) times too large, with r ≤ n.
    products = math.ceil(math.log2(max(math.log(columns) / (2 * math.log1p(slack)), 2)))
    matrix = _Matrix(real, imag)
    largest = _largest(matrix)
    is_zero = largest == 0  # The norm is not differentiable at zero.
    scale, inverse = _power_of_two(xp.where(is_zero, 1, largest))
    matrix = jax.tree.map(lambda x: xp.where(is_zero, 1, x) * inverse, matrix)
    power, product = _squared(matrix)
    if xp is np:
        found = [product]
        for _ in range(products - 1):
            power, product = _squared(power)
            found.append(product)
        norm = functools.reduce(_before, reversed(found), _frobenius_norm(power))
    else:
        power, rest = jax.lax.scan(lambda x, _: _squared(x), power, length=products - 1)
        last = _frobenius_norm(power)
        fixed = jax.lax.stop_gradient(last)
        norm, _ = jax.lax.scan(
            lambda norm, product: (_before(norm, product), None), fixed, rest, reverse=True
        )
        # The derivative is that of ‖G^(2ᵗ)‖_F^(1/2ᵗ⁺¹), without the rounding errors.
        norm = _before(norm, product) * (1 + (last / fixed - 1) / 2**products)
    norms = xp.where(is_zero, 0, scale * norm[..., None, None])
    # The errors of the Frobenius norm at the end, and those of all square roots together.
    eps = eps_of(real)
    rounding = math.exp(columns**2 * eps / 2 ** (products + 1) + 8 * eps)
    bound: jax.Array = rounding * xp.max(norms)
    return bound


def _squared(matrix: _Matrix) -> tuple[_Matrix, _Product]:
    """Computes A*A in three real products. For a Hermitian matrix, this is its square."""
    x, y = matrix
    xp = module_of(x)
    *_, rows, columns = x.shape
    sizes = abs(x) if y is None else abs(x) + abs(y)
    sizes = sizes if xp is np else jax.lax.stop_gradient(sizes)
    of_sizes = xp.max(xp.sum(sizes * xp.sum(sizes, -1, keepdims=True), -2), -1)  # ‖|N|ᵀ|N|‖_∞
    eps = eps_of(x)
    block = rows if xp is np else _block(rows)
    # Further roundings are those of the entries, which count as three, and that of x*x + y*y.
    roundings = block + math.ceil(rows / block) + 4
    error = math.expm1(roundings * eps) * math.exp((rows + columns) * eps) * of_sizes
    if y is None:
        product = _Matrix(_transposed_product(x, x), None)
    else:
        mixed = _transposed_product(x, y)
        both = _transposed_product(x, x) + _transposed_product(y, y)
        product = _Matrix(both, mixed - mixed.mT)
    scale, inverse = _power_of_two(_largest(product))
    scaled: _Matrix = jax.tree.map(lambda x: x * inverse, product)
    return scaled, _Product(scale[..., 0, 0], error)


def _before(norm: jax.Array, product: _Product) -> jax.Array:
    """Returns the bound on ‖N‖ from the bound on ‖N′‖."""
    root: jax.Array = module_of(norm).sqrt(product.scale * norm + product.error)
    return root


def _block(rows: int) -> int:
    """Returns the number of terms that are summed up at once."""
    return min(rows, max(SHORT, math.isqrt(rows - 1) + 1))


def _transposed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns xᵀy, computed block by block unless the sums are short."""
    if module_of(x) is np:
        return x.mT @ y
    rows = x.shape[-2]
    block = _block(rows)
    if rows == block:
        return matmul(x.mT, y)

    def blocks(x: jax.Array) -> jax.Array:
        *batch, _, columns = x.shape
        padding = [(0, 0)] * len(batch) + [(0, -rows % block), (0, 0)]
        return jnp.moveaxis(jnp.pad(x, padding).reshape(*batch, -1, block, columns), -3, 0)

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + matmul(pair[0].mT, pair[1]), None

    start = jnp.zeros((*x.shape[:-2], x.shape[-1], y.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(add, start, (blocks(x), blocks(y)))
    return total


def _largest(matrix: _Matrix) -> jax.Array:
    """Returns the largest absolute value of the parts, with shape (…, 1, 1)."""
    xp = module_of(matrix.real)
    parts = [xp.max(abs(x), (-2, -1), keepdims=True) for x in matrix if x is not None]
    largest: jax.Array = functools.reduce(xp.maximum, parts)
    return largest if xp is np else jax.lax.stop_gradient(largest)


def _power_of_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a power of two close to x > 0, and its reciprocal."""
    finfo = np.finfo(x.dtype)
    if module_of(x) is np:
        power = np.ldexp(np.ones_like(x), np.frexp(x)[1].clip(finfo.minexp + 4, finfo.maxexp - 4))
        return power, 1 / power

    def rounded(x: jax.Array) -> jax.Array:
        # Without a mantissa, the nearest number is a power of two.
        return jax.lax.reduce_precision(x, int(finfo.iexp), 0)

    power = rounded(jnp.clip(x, 16 * float(finfo.tiny), float(finfo.max) / 16))
    return power, rounded(1 / power)


def _frobenius_norm(matrix: _Matrix) -> jax.Array:
    x, y = matrix
    xp = module_of(x)
    squares = x**2 if y is None else x**2 + y**2
    norm: jax.Array = xp.sqrt(xp.sum(squares, (-2, -1)))
    return norm
