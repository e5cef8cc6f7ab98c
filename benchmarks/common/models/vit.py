"""A small vision transformer with pre-normalization and learned position embeddings.

Dosovitskiy et al., 'An Image is Worth 16x16 Words', ICLR 2021, arXiv 2010.11929. The mean over all
tokens replaces the class token, which is simpler and as accurate (arXiv 2205.01580).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

TOKENS = 8  # the largest number of patches per side


class Vit(nn.Module):
    """A vision transformer for small images.

    The defaults are ViT-Ti at half its depth, with 2.7 million parameters. Patches are the smallest
    ones of at least 2×2 pixels for which there are at most 8×8 patches.

    Attributes:
      num_classes: the number of logits.
      width: the embedding dimension.
      depth: the number of transformer layers.
      heads: the number of attention heads, a divisor of `width`.
      dropout: the dropout rate.
      convolve: the convolution that embeds the patches, with the signature of
        `jax.lax.conv_general_dilated`.
      dtype: the dtype of the computation; None for that of the inputs. Parameters, the softmax
        of the attention and the statistics of the normalization are float32.
    """

    num_classes: int
    width: int = 192
    depth: int = 6
    heads: int = 3
    dropout: float = 0.1
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; dropout depends on `train`."""

        def dropped(x: jax.Array) -> Any:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        side = max(2, math.ceil(max(x.shape[1:3]) / TOKENS))
        x = nn.Conv(
            self.width,
            (side, side),
            strides=side,
            dtype=self.dtype,
            conv_general_dilated=self.convolve,
        )(x)
        x = x.reshape(len(x), -1, self.width)
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x = dropped(x + positions.astype(x.dtype))
        for _ in range(self.depth):
            y = nn.LayerNorm(dtype=self.dtype)(x)
            y = nn.MultiHeadDotProductAttention(
                self.heads, dtype=self.dtype, force_fp32_for_softmax=True
            )(y)
            x = x + dropped(y)
            y = nn.gelu(
                nn.Dense(4 * self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
            )
            x = x + dropped(nn.Dense(self.width, dtype=self.dtype)(y))
        x = nn.LayerNorm(dtype=self.dtype)(x).mean(1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
