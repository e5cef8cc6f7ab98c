"""Linear maps that are given by a function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


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

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Raises an error, because a function does not tell which entries make one output."""
        raise ValueError(
            f"{self} does not tell which axes of a kernel of shape {kernel.shape} are its outputs: "
            "describe the layer with flatreg.lipschitz.Dense(contracting=…) or Convolution(…)."
        )
