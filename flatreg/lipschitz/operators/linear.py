"""Linear maps: what a layer does to one example, given its kernel.

A kernel alone does not determine what a layer does to its input: the norm of a convolution also
depends on its strides, on its padding and on the size of its input. A linear map holds these
settings, but no arrays. It is frozen and hashable, so it can be a static argument of ``jax.jit``.
Every map takes a single example, without a batch axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core import tree as _tree
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense


@dataclass(frozen=True)
class Linear:
    """A linear map that is given by a function.

    Attributes:
      function: ``function(kernel, x) -> y`` for one example, linear in x. Pass a named function
        instead of a new lambda each time, because two maps are equal only if they hold the same
        function object.
      input_shape: the shape of x, without a batch axis.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    input_shape: tuple[int, ...]

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """Returns the shape of x."""
        del kernel
        return self.input_shape

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Applies the map to one example."""
        return self.function(kernel, x)


LinearMap: TypeAlias = Dense | Convolution | Linear
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
