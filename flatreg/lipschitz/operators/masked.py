"""Kernels that are multiplied by constants before use, such as masks."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.function import Linear
from flatreg.lipschitz.operators.stacked import Stacked


@dataclass(frozen=True, eq=False)
class Masked:
    """The linear map of a kernel that is multiplied by constant factors, entry by entry.

    Attributes:
      linear_map: the linear map of the product ``kernel * mask``.
      mask: the factors, a NumPy array that broadcasts to the shape of the kernel.
    """

    linear_map: Dense | Convolution | Linear | Stacked
    mask: np.ndarray[Any, Any]

    def __eq__(self, other: object) -> bool:
        """Whether both maps are the same."""
        if not isinstance(other, Masked) or self.linear_map != other.linear_map:
            return False
        return bool(np.array_equal(self.mask, other.mask))

    def __hash__(self) -> int:
        """Makes the map a static argument of ``jax.jit``."""
        return hash((self.linear_map, self.mask.shape, self.mask.tobytes()))

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """Returns the shape of x."""
        return self.linear_map.input_shape_of(kernel)

    def masked(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel as it is used."""
        return kernel * jnp.asarray(self.mask, kernel.dtype)

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel that are summed over for one output."""
        return self.linear_map.input_axes(kernel)

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Applies the map to one example."""
        return self.linear_map.apply(self.masked(kernel), x)
