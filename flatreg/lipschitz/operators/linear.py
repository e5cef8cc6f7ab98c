"""Linear maps: what a layer does to one example, given its kernel.

A kernel alone does not determine what a layer does to its input: the norm of a convolution also
depends on its strides, on its padding and on the size of its input. A linear map holds these
settings, but no parameters. It is frozen and hashable, so it can be a static argument of
``jax.jit``. Every map takes a single example, without a batch axis.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core import tree as _tree
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.function import Linear
from flatreg.lipschitz.operators.masked import Masked
from flatreg.lipschitz.operators.stacked import Stacked

LinearMap: TypeAlias = Dense | Convolution | Linear | Stacked | Masked
"""What a layer does to one example, given its kernel."""


def float_kernel(kernel: Any) -> jax.Array:
    """Returns the kernel in at least float32 and rejects kernels that are not floating-point."""
    dtype = jnp.result_type(kernel)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"a kernel must have a floating-point dtype, got {dtype}: pass "
            "kernel.astype(jnp.float32)."
        )
    wide: jax.Array = _tree.widened(kernel)
    return wide
