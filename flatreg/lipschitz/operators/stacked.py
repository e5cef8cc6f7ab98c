"""Stacks of layers in one kernel, as ``nn.scan``, ``nnx.scan`` and ``vmap`` store them."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.function import Linear


@dataclass(frozen=True)
class Stacked:
    """One linear map per layer of a stack, whose kernels are stored in one array.

    As a linear map, it applies the kernel of layer i to input i, and its norm is the largest norm
    of the layers. Penalties, projections and normalization treat every layer by itself.

    Attributes:
      linear_map: the linear map of one layer, for the kernel without the axes in ``axes``.
      axes: the axes of the kernel that number the layers, in ascending order.
    """

    linear_map: Dense | Convolution | Linear
    axes: tuple[int, ...] = (0,)

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """Returns the shape of x, (layers, *input of one layer)."""
        layer = jax.eval_shape(self.unstacked, jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))
        one = jax.ShapeDtypeStruct(layer.shape[1:], layer.dtype)
        return (layer.shape[0], *self.linear_map.input_shape_of(one))

    def unstacked(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernels of the layers, shape (layers, *kernel of one layer)."""
        if not self.axes or not all(0 <= axis < kernel.ndim for axis in self.axes):
            raise ValueError(
                f"Stacked(…, axes={self.axes}) does not fit a kernel of shape {kernel.shape}: pass "
                "the axes of the kernel that number the layers, for example Stacked(Dense(), "
                "axes=(0,)) for a kernel (layers, in, out)."
            )
        first = jnp.moveaxis(kernel, self.axes, range(len(self.axes)))
        layers = math.prod(first.shape[: len(self.axes)])
        return first.reshape(layers, *first.shape[len(self.axes) :])

    def per_layer(self, factors: jax.Array, kernel: Any) -> jax.Array:
        """Returns one factor per layer, shape (layers,), shaped to multiply the kernel."""
        sizes = (n if i in self.axes else 1 for i, n in enumerate(kernel.shape))
        return factors.reshape(tuple(sizes))

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel that are summed over for one output."""
        others = [axis for axis in range(kernel.ndim) if axis not in self.axes]
        shape = tuple(kernel.shape[axis] for axis in others)
        layer = jax.ShapeDtypeStruct(shape, kernel.dtype)
        return tuple(others[axis] for axis in self.linear_map.input_axes(layer))

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Applies the map of every layer to its input."""
        return jax.vmap(self.linear_map.apply)(self.unstacked(kernel), x)
