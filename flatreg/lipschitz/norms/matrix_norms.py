"""Kernel norms with a closed form in the entries: the Frobenius norm and induced norms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core import tree as _tree
from flatreg.lipschitz.operators.linear import float_kernel


def frobenius_norm(tree: Any) -> jax.Array:
    r"""Returns the Frobenius norm ‖W‖_F = √Σw² over all leaves of a tree.

    The Frobenius norm is an upper bound on the spectral norm of a dense kernel. The computed norm
    is not rounded up: for n entries, its relative error is at most nε, with ε = 1.2e-7 in float32.
    For a certified bound, use :func:`spectral_norm_upper_bound`. To penalize the square of the
    norm, use weight decay: ``optax.add_decayed_weights``.

    Args:
      tree: a kernel, or a tree of kernels.

    Returns:
      The norm, in at least float32. Intermediate results neither overflow nor underflow.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> print(lipschitz.frobenius_norm({"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}))
      5.0
    """
    return _tree.norm(tree)


def induced_norm(kernel: Any, ord: float) -> jax.Array:
    r"""Returns the norm of x ↦ xW from ℓₚ to ℓₚ for a dense kernel W, with p = 1 or ∞.

    The norm is the maximum over inputs of Σ_out |w| for p = 1, and the maximum over outputs of Σ_in
    |w| for p = ∞. Compared with the formulas for ``y = Wx``, rows and columns are exchanged,
    because in Flax the kernel multiplies the input from the right. The computed norm is not rounded
    up: for sums of n terms, its relative error is at most nε, with ε = 1.2e-7 in float32.

    Args:
      kernel: a dense kernel with shape (in, out).
      ord: p, either 1 or ``jnp.inf``.

    Returns:
      The norm, a scalar, in at least float32.

    Raises:
      ValueError: if ``ord`` is neither 1 nor ``jnp.inf``, or if the kernel does not have two axes.
      TypeError: if the kernel is not floating-point.

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
        raise ValueError(f"ord must be 1 or jnp.inf, got {ord}: for 2, use spectral_norm(kernel).")
    kernel = float_kernel(kernel)
    if kernel.ndim != 2:
        raise ValueError(
            f"induced_norm takes a dense kernel (in, out), got shape {kernel.shape}: if its last "
            "axis is the output, pass kernel.reshape(-1, kernel.shape[-1])."
        )
    return jnp.max(jnp.sum(jnp.abs(kernel), axis=1 if ord == 1 else 0), initial=0)
