"""A layer's linear map x ↦ A(x), of one example without batch axis, as a function of its kernel.

A kernel does not say by itself what it does to an input: how far a convolution steps, what it pads
and how large its input is decide on the norm as well. A linear map is that missing half: frozen and
hashable, so that it can be a static argument, and free of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core import tree as _tree
from flatreg.lipschitz.operators.convolution import Convolution


@dataclass(frozen=True)
class Dense:
    """y = x W, as in Flax: the last axis of the kernel is the output, those before are the input.

    Attributes:
      contracting: the axes of the kernel that are summed over, in the order of x's axes; by default
        all but the last. ``contracting=(0,)`` is DenseGeneral with several output axes.
    """

    contracting: tuple[int, ...] | None = None

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """The shape of x for this kernel."""
        return tuple(kernel.shape[axis] for axis in self.axes(kernel))

    def axes(self, kernel: Any) -> tuple[int, ...]:
        """The contracted axes, of a kernel that has them."""
        axes = tuple(range(kernel.ndim - 1)) if self.contracting is None else self.contracting
        if not axes or not all(0 <= axis < kernel.ndim for axis in axes):
            raise ValueError(
                f"Dense sums over axes {axes} of a kernel of shape {kernel.shape}: name its input "
                "axes, such as Dense(contracting=(0,)) for (in, out)."
            )
        return axes

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """A(x) for one example."""
        axes = tuple(range(x.ndim)), self.axes(kernel)
        return jnp.tensordot(x, kernel, axes, precision=jax.lax.Precision.HIGHEST)

    def matrix(self, kernel: jax.Array) -> jax.Array:
        """The kernel as a matrix (in, out)."""
        axes = self.axes(kernel)
        inputs_first = jnp.moveaxis(kernel, axes, range(len(axes)))
        size = 1
        for axis in axes:
            size *= kernel.shape[axis]
        return inputs_first.reshape(size, -1)


@dataclass(frozen=True)
class Linear:
    """Any function that is linear in x.

    Attributes:
      function: ``(kernel, x) -> y`` for one example; a named function rather than a fresh lambda,
        since its identity decides on equality.
      input_shape: the shape of x.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    input_shape: tuple[int, ...]

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """The shape of x."""
        del kernel
        return self.input_shape

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """A(x) for one example."""
        return self.function(kernel, x)


LinearMap: TypeAlias = Dense | Convolution | Linear


def widened(kernel: Any) -> jax.Array:
    """The kernel in at least float32."""
    dtype = jnp.result_type(kernel)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"a kernel must be of floating point, got {dtype}: pass kernel.astype(jnp.float32)."
        )
    wide: jax.Array = _tree.widened(kernel)
    return wide
