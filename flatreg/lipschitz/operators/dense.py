"""Dense layers as linear maps."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Dense:
    """The linear map x ↦ x W of a dense layer.

    By default, the last axis of the kernel is the output and all other axes are the input, as in
    Flax.

    Attributes:
      contracting: the input axes of the kernel, which are summed over, in the order of the axes of
        x. If None, all axes except the last. For example, ``contracting=(0,)`` describes a
        DenseGeneral layer with several output axes.
    """

    contracting: tuple[int, ...] | None = None

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """Returns the shape of x for this kernel."""
        return tuple(kernel.shape[axis] for axis in self.axes(kernel))

    def axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the contracted axes after checking that the kernel has them."""
        axes = tuple(range(kernel.ndim - 1)) if self.contracting is None else self.contracting
        if not axes or not all(0 <= axis < kernel.ndim for axis in axes):
            raise ValueError(
                f"Dense cannot sum over axes {axes} of a kernel of shape {kernel.shape}: pass the "
                "kernel's input axes, for example Dense(contracting=(0,)) for a kernel (in, out)."
            )
        return axes

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel that are summed over for one output."""
        return self.axes(kernel)

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Applies the map to one example."""
        axes = tuple(range(x.ndim)), self.axes(kernel)
        return jnp.tensordot(x, kernel, axes, precision=jax.lax.Precision.HIGHEST)

    def matrix(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel as a matrix (inputs, outputs)."""
        axes = self.axes(kernel)
        inputs_first = jnp.moveaxis(kernel, axes, range(len(axes)))
        return inputs_first.reshape(math.prod(self.input_shape_of(kernel)), -1)
