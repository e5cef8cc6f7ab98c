"""A small vision transformer with its norms in front, learned positions and the mean over tokens.

Dosovitskiy et al., 'An Image is Worth 16x16 Words', ICLR 2021, arXiv 2010.11929. Its class token is
the mean over all tokens here, which does as well and is simpler (arXiv 2205.01580).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

TOKENS = 8  # at most so many a side


class Vit(nn.Module):
    """Patches, embedded; then layers of attention and of an MLP with GELU, each beside an identity.

    The defaults are ViT-Ti at half its depth, 2.7 million weights. A patch is 2×2 or larger, so
    that there are at most 8×8. `dtype` is that of the computation; parameters, softmax and norms
    stay in float32.
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
