r"""Norms of linear maps; spectral ones as an interval, for a lower bound alone proves nothing.

From below: Golub–Kahan Lanczos, which reaches σ in tens of products where power iteration may need
thousands. From above: certified bounds. Power iteration is for training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core import tree as _tree
from flatreg.lipschitz.norms.lanczos import largest_by_lanczos
from flatreg.lipschitz.norms.symbol import symbol_maximum
from flatreg.lipschitz.norms.upper_bounds import (
    SMALL,
    convolution,
    default_map,
    dense_bound,
    entries,
    spectral_norm_upper_bound,
)
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.linear_maps import LinearMap, widened

TOLERANCE = 0.02  # of the symbol's grid


class Interval(NamedTuple):
    """Where a norm lies, apart from rounding: ``lower`` ≤ σ ≤ ``upper``."""

    lower: jax.Array
    upper: jax.Array


def frobenius_norm(tree: Any) -> jax.Array:
    r"""‖W‖_F = √Σw² over all leaves, which bounds the spectral norm of a dense kernel.

    Weight decay penalizes its square: ``optax.add_decayed_weights``.

    Args:
      tree: a kernel, or a tree of them.

    Returns:
      The norm, in at least float32; neither over- nor underflow in between.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> print(lipschitz.frobenius_norm({"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}))
      5.0
    """
    return _tree.norm(tree)


def induced_norm(kernel: Any, ord: float) -> jax.Array:
    r"""‖x ↦ xW‖ from ℓₚ to ℓₚ of a dense kernel (in, out), for p = 1 or ∞.

    max over inputs of Σ_out |w| for p = 1, max over outputs of Σ_in |w| for p = ∞: those of
    ``y = Wx`` with rows and columns exchanged, because Flax's kernels multiply from the right.

    Args:
      kernel: two axes, (in, out).
      ord: 1 or ``jnp.inf``.

    Returns:
      The norm, a scalar, in at least float32.

    Raises:
      ValueError: for another ``ord``, or a kernel that has not two axes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> kernel = jnp.array([[1.0, 2.0], [3.0, -4.0]])
      >>> print(lipschitz.induced_norm(kernel, 1), lipschitz.induced_norm(kernel, jnp.inf))
      7.0 6.0

    References:
      Gouk, Frank, Pfahringer and Cree, `Regularisation of Neural Networks by Enforcing Lipschitz
      Continuity <https://arxiv.org/abs/1804.04368>`_, 2021.
    """
    if ord not in (1, np.inf):
        raise ValueError(f"ord must be 1 or jnp.inf, got {ord}: for 2 call spectral_norm(kernel).")
    kernel = widened(kernel)
    if kernel.ndim != 2:
        raise ValueError(
            f"induced_norm takes a dense kernel (in, out), got shape {kernel.shape}: reshape it by "
            "kernel.reshape(-1, kernel.shape[-1]) if its last axis is the output."
        )
    return jnp.max(jnp.sum(jnp.abs(kernel), axis=1 if ord == 1 else 0), initial=0)


def spectral_norm(
    kernel: Any,
    linear_map: LinearMap | None = None,
    *,
    steps: int = 50,
    key: jax.Array | None = None,
) -> Interval:
    r"""σ(A) = max ‖A(x)‖/‖x‖ of the operator that a layer applies, as an interval.

    ``lower`` is ‖A(v)‖ at the v that Golub–Kahan Lanczos iteration finds from a random start, in
    ``steps`` products with A and Aᵀ. ``upper`` is :func:`spectral_norm_upper_bound`, or Gram
    iteration of the whole operator where that is small enough to be written out. To compile it once
    for all kernels of a shape: ``jax.jit(spectral_norm, static_argnames=("linear_map", "steps"))``.

    Args:
      kernel: the kernel; computed in at least float32.
      linear_map: what the kernel does: :class:`Dense`, :class:`Convolution` or :class:`Linear`;
        :func:`linear_maps` finds them in a model. If None, a kernel of two axes is dense. One of
        three to five axes is a convolution of stride 1 on an unbounded grid, the supremum of its
        symbol: ``lower`` is then the largest σ of the symbol at some frequencies, and only
        ``upper`` bounds the convolution at other strides, paddings and input sizes, too.
      steps: of Lanczos iteration. Memory holds as many inputs and outputs.
      key: draws the start; ``jax.random.key(0)`` if None, and then the result is reproducible.

    Returns:
      :class:`Interval` of two scalars.

    Raises:
      ValueError: as :func:`spectral_norm_upper_bound`, and if ``steps`` is not positive.
      TypeError: if the kernel is not of floating point.

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
    kernel = widened(kernel)
    linear_map = default_map(kernel) if linear_map is None else linear_map
    upper = spectral_norm_upper_bound(kernel, linear_map, tolerance=TOLERANCE)
    if linear_map is None:
        return Interval(symbol_maximum(*convolution(kernel, None), TOLERANCE), upper)
    if isinstance(linear_map, Convolution) and entries(kernel, linear_map) <= SMALL:
        upper = jnp.minimum(upper, dense_bound(kernel, linear_map))
    return Interval(largest_by_lanczos(kernel, linear_map, steps, key), upper)
