r"""The spectral norm σ of a linear map, as an interval.

A lower bound alone proves nothing about how large σ can be, and an upper bound alone does not say
how tight it is. The lower bound comes from Golub–Kahan Lanczos iteration, which reaches σ within
tens of products when power iteration may need thousands. The upper bound is certified. For
training, use :func:`power_iteration`, which is cheaper per step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.krylov import largest_singular_value
from flatreg.lipschitz.norms.symbol import symbol_maximum
from flatreg.lipschitz.norms.upper_bounds import (
    blocks_and_axes,
    default_map,
    matrix_bound,
    matrix_entries,
    spectral_norm_upper_bound,
)
from flatreg.lipschitz.operators.convolution import Axis, Convolution
from flatreg.lipschitz.operators.linear import LinearMap, float_kernel
from flatreg.lipschitz.operators.masked import Masked

TOLERANCE = 0.02  # of the bound by the symbol, which determines the grid of frequencies
SMALL = 2**20  # A map with at most this many matrix entries is also bounded by its matrix.


class Interval(NamedTuple):
    """An interval that contains a norm: ``lower`` ≤ σ ≤ ``upper``.

    Attributes:
      lower: the lower bound, up to the rounding errors of its computation.
      upper: the upper bound, which covers the rounding errors of its computation.
    """

    lower: jax.Array
    upper: jax.Array


def spectral_norm(
    kernel: Any,
    linear_map: LinearMap | None = None,
    *,
    steps: int = 50,
    key: jax.Array | None = None,
) -> Interval:
    r"""Returns an interval that contains σ(A) = max ‖A(x)‖/‖x‖ of a layer's linear map A.

    ``lower`` is ‖A(v)‖ for the unit vector v that Golub–Kahan Lanczos iteration finds from a random
    start, using ``steps`` products with A and Aᵀ. ``upper`` is :func:`spectral_norm_upper_bound`.
    For a convolution whose matrix has at most 2²⁰ entries, each of which is an entry of the kernel
    or zero, ``upper`` is the smaller of that bound and the bound from Gram iteration on the matrix.

    To compile the function once for all kernels of a shape, use
    ``jax.jit(spectral_norm, static_argnames=("linear_map", "steps"))``.

    Args:
      kernel: the kernel. The computation is in at least float32.
      linear_map: the linear map of the layer, :data:`LinearMap`. :func:`linear_maps` finds the
        maps of a model. It may be None for a kernel with two axes, which is then dense. With
        ``Convolution((None, None, channels))``, the input is infinite, and the norm is the supremum
        of the symbol, the Fourier transform of the kernel. Then ``lower`` is the largest σ of the
        symbol at some frequencies, and only ``upper`` also holds for inputs of finite size.
      steps: the number of Lanczos steps, at least 1. Each step keeps one input and one output in
        memory.
      key: the random key for the start. If None, ``jax.random.key(0)``, so that the result is
        reproducible.

    Returns:
      An :class:`Interval` of two scalars.

    Raises:
      ValueError: if the kernel does not fit the map, if the map is missing and the kernel does not
        have two axes, if a ``Linear`` map has too many matrix entries, or if ``steps`` is not
        positive.
      TypeError: if the kernel is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> sigma = lipschitz.spectral_norm(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
      >>> print(f"{sigma.lower:.3f} {sigma.upper:.3f}")
      1.000 1.000
      >>> box = lipschitz.Convolution((8, 8, 1), padding="SAME")
      >>> sigma = lipschitz.spectral_norm(jnp.ones((3, 3, 1, 1)), box)
      >>> print(f"{sigma.lower:.3f} {sigma.upper:.3f}")
      8.291 8.291

    References:
      Golub and Kahan, `Calculating the Singular Values and Pseudo-Inverse of a Matrix
      <https://doi.org/10.1137/0702016>`_, 1965.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: write steps=50.")
    kernel = float_kernel(kernel)
    linear_map = default_map(kernel) if linear_map is None else linear_map
    if isinstance(linear_map, Masked):
        kernel, linear_map = linear_map.masked(kernel), linear_map.linear_map
    upper = spectral_norm_upper_bound(kernel, linear_map, tolerance=TOLERANCE)
    if isinstance(linear_map, Convolution) and linear_map.is_infinite:
        lower = symbol_maximum(*blocks_and_axes(kernel, linear_map), TOLERANCE)
        return Interval(lower, upper)
    if isinstance(linear_map, Convolution) and matrix_entries(kernel, linear_map) <= SMALL:
        _, axes = blocks_and_axes(kernel, linear_map)
        if not any(map(_laps, axes)):
            upper = jnp.minimum(upper, matrix_bound(kernel, linear_map))
    return Interval(_lanczos_lower_bound(kernel, linear_map, steps, key), upper)


def _laps(axis: Axis) -> bool:
    """Whether several taps may reach the same input of a circle, where the matrix has their sum."""
    distance, length = (axis.window - 1) * axis.kernel_dilation, axis.inputs
    return axis.circular and length is not None and distance >= length * axis.input_dilation


def _lanczos_lower_bound(
    kernel: jax.Array, linear_map: LinearMap, steps: int, key: jax.Array | None
) -> jax.Array:
    """Returns a lower bound on σ. Divides the kernel by its largest entry to avoid overflow."""
    largest = jnp.max(jnp.abs(kernel), initial=0)
    scaled = kernel / jnp.where(largest == 0, 1, largest)
    x = jax.ShapeDtypeStruct(linear_map.input_shape_of(kernel), kernel.dtype)
    key = jax.random.key(0) if key is None else key
    return largest * largest_singular_value(lambda x: linear_map.apply(scaled, x), x, steps, key)
