"""A multilayer perceptron."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax


class Mlp(nn.Module):
    """A multilayer perceptron with GELU and dropout after each hidden layer.

    Attributes:
      hidden: the widths of the hidden layers.
      num_classes: the number of logits.
      dropout: the dropout rate.
      dtype: the dtype of the computation; None for that of the inputs. Parameters are float32.
    """

    hidden: Sequence[int]
    num_classes: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; dropout depends on `train`."""
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.gelu(nn.Dense(width, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
