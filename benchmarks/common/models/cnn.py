"""A small convolutional network."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax


class Cnn(nn.Module):
    """Strided 3×3 convolutions with BatchNorm and GELU, global average pooling and a dense layer.

    Attributes:
      channels: the number of channels after each convolution.
      num_classes: the number of logits.
      convolve: the convolution, with the signature of `jax.lax.conv_general_dilated`.
      dropout: the dropout rate before the dense layer.
      dtype: the dtype of the computation; None for that of the inputs. Parameters are float32.
    """

    channels: Sequence[int]
    num_classes: int
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    dropout: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; BatchNorm and dropout depend on `train`."""
        for width in self.channels:
            x = nn.Conv(
                width,
                (3, 3),
                strides=2,
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=self.convolve,
            )(x)
            # momentum 0.9: the statistics converge within one epoch of a small data set
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)
            x = nn.gelu(norm(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
