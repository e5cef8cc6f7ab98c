r"""Upper bounds of spectral norms that are certified, out of small products of kernel entries.

**Reshaped kernel.** An input is read at most p times, so ‖Ax‖² ≤ σ(R)² Σ‖patch‖² ≤ pσ(R)²‖x‖² with
R the kernel as (window·in, out); and the same for the adjoint, with the most taps that reach an
output and the kernel as (in, window·out).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.norms.gram import gram_bound
from flatreg.lipschitz.norms.symbol import symbol_bound
from flatreg.lipschitz.operators.convolution import Axis, Convolution
from flatreg.lipschitz.operators.linear_maps import Dense, LinearMap, widened

SMALL = 2**20  # entries of an operator that is written out to be measured
DENSE = 2**24  # the most entries of an operator that is written out
MAXIMUM_AXES = 3


def spectral_norm_upper_bound(
    kernel: Any, linear_map: LinearMap | None = None, *, tolerance: float = 0.05
) -> jax.Array:
    r"""A certified upper bound of σ(A), cheap enough for a training step.

    Dense kernels: Gram iteration, at most 0.1% above. Convolutions: the smallest of the symbol's
    bound max_grid σ(F(ω)) / ∏ cos(πd/2N), the number N of frequencies such that it is within
    ``tolerance`` of the symbol's supremum, and of the bounds √p·σ(reshaped) of the kernel and its
    adjoint, p the number of times that an input is read or an output is reached: √(⌈k/s⌉⌈k/s⌉) for
    stride s. Proofs: the head of this module. Never below σ(A) apart from rounding.

    The cost for r = min(in, out) channels is some 6r³ FLOPs, N²/2 frequencies and log₂(log r /
    ``tolerance``) squarings: for 3×3 kernels N = 18, and 9 with ``tolerance=0.2``.

    Args:
      kernel: the kernel; computed in at least float32.
      linear_map: what the kernel does. If None, a kernel of two axes is dense; one of three to five
        is a convolution, bounded for every input size, zero or circular padding, stride, dilation
        and grouping by its symbol of stride 1 (several reading directions, as in reflected padding,
        are not covered; nor is a dense kernel of more than two axes, which needs ``Dense()``).
      tolerance: how far above the symbol's supremum the bound may be.

    Returns:
      The bound, a scalar.

    Raises:
      ValueError: if the kernel does not fit the map, ``tolerance`` is not positive, or a ``Linear``
        map is too large to be written out.
      TypeError: if the kernel is not of floating point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> box = jnp.ones((3, 3, 1, 1))
      >>> circular = lipschitz.Convolution((8, 8, 1), padding="CIRCULAR")
      >>> print(f"{lipschitz.spectral_norm_upper_bound(box, circular):.3f}")
      9.000
      >>> strided = lipschitz.Convolution((8, 8, 1), strides=2)
      >>> print(f"{lipschitz.spectral_norm_upper_bound(box, strided):.3f}")
      5.000

    References:
      Delattre, Barthélemy, Araujo and Allauzen, `Efficient Bound of Lipschitz Constant for
      Convolutional Layers by Gram Iteration <https://arxiv.org/abs/2305.16173>`_, 2023 (there with
      another factor); Singla and Feizi, `Fantastic Four <https://arxiv.org/abs/1911.10258>`_, 2021.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}: write tolerance=0.05.")
    kernel = widened(kernel)
    linear_map = default_map(kernel) if linear_map is None else linear_map
    if isinstance(linear_map, Dense):
        return gram_bound(linear_map.matrix(kernel))
    if linear_map is None or isinstance(linear_map, Convolution):
        blocks, axes = convolution(kernel, linear_map)
        return jnp.minimum(symbol_bound(blocks, axes, tolerance), reshape_bound(blocks, axes))
    return dense_bound(kernel, linear_map)


def default_map(kernel: jax.Array) -> Dense | None:
    """``Dense()`` for two axes, None for the convolution on an unbounded grid."""
    if not 2 <= kernel.ndim <= MAXIMUM_AXES + 2:
        raise ValueError(
            f"a kernel of shape {kernel.shape} needs a linear map: pass linear_map=flatreg."
            "lipschitz.Dense(), or reshape it to (in, out)."
        )
    return Dense() if kernel.ndim == 2 else None


def convolution(
    kernel: jax.Array, linear_map: Convolution | None
) -> tuple[jax.Array, tuple[Axis, ...]]:
    """The kernel as (*window, in / groups, groups, out / groups), and its spatial axes."""
    groups = 1
    if linear_map is not None:
        kernel, groups = linear_map.oriented(kernel), linear_map.feature_group_count
    *window, inputs, outputs = kernel.shape
    axes = tuple(map(Axis, window)) if linear_map is None else linear_map.axes(tuple(window))
    return kernel.reshape(*window, inputs, groups, outputs // groups), axes


def entries(kernel: jax.Array, linear_map: LinearMap) -> int:
    """How many entries the operator has, written out."""
    shape = linear_map.input_shape_of(kernel)
    struct = jax.ShapeDtypeStruct(shape, kernel.dtype)
    size: int = jax.eval_shape(linear_map.apply, kernel, struct).size
    return math.prod(shape) * size


def dense_bound(kernel: jax.Array, linear_map: LinearMap) -> jax.Array:
    """Gram iteration of the operator, written out."""
    shape = linear_map.input_shape_of(kernel)
    size = math.prod(shape)
    if entries(kernel, linear_map) > DENSE:
        raise ValueError(
            f"{linear_map} has {entries(kernel, linear_map)} entries, too many to bound it from "
            "above: describe it as flatreg.lipschitz.Dense() or Convolution(…), or use "
            "power_iteration, a lower bound."
        )
    basis = jnp.eye(size, dtype=kernel.dtype).reshape(size, *shape)
    rows = jax.vmap(lambda x: linear_map.apply(kernel, x))(basis)
    return gram_bound(rows.reshape(size, -1))


def reshape_bound(blocks: jax.Array, axes: tuple[Axis, ...]) -> jax.Array:
    """The smaller of √p·σ(R) for the convolution and for its adjoint."""
    *window, inputs, groups, outputs = blocks.shape
    taps = math.prod(window)
    grouped = jnp.moveaxis(blocks.reshape(taps, inputs, groups, outputs), 2, 0)
    forward = gram_bound(grouped.reshape(groups, taps * inputs, outputs))
    adjoint = gram_bound(grouped.swapaxes(1, 2).reshape(groups, inputs, taps * outputs))
    reads, reached = map(math.prod, zip(*map(_multiplicity, axes), strict=True))
    return jnp.minimum(math.sqrt(reads) * forward, math.sqrt(reached) * adjoint)


def _multiplicity(axis: Axis) -> tuple[int, int]:
    """How often an input is read at most, and how many taps reach an output at most."""
    if axis.inputs is None or axis.outputs is None:
        return axis.window, axis.window
    o, t = np.ogrid[: axis.outputs, : axis.window]
    place = axis.stride * o + axis.kernel_dilation * t - axis.low
    i = place // axis.input_dilation
    inside = (place % axis.input_dilation == 0) & (axis.circular | ((i >= 0) & (i < axis.inputs)))
    reads = np.bincount(i[inside] % axis.inputs, minlength=1)
    return int(reads.max()), int(inside.sum(1).max(initial=0))
