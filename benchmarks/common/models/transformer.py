"""A small causal transformer with pre-normalization, which predicts the next character of a text.

Radford et al., 'Language Models are Unsupervised Multitask Learners', 2019 (GPT-2), without dropout
by default and without weight tying.
"""

from typing import Any

import flax.linen as nn
import jax


class Transformer(nn.Module):
    """A decoder-only transformer for sequences of a fixed length.

    Attributes:
      num_classes: the number of different tokens.
      width: the embedding dimension.
      depth: the number of layers.
      heads: the number of attention heads, a divisor of `width`.
      dropout: the dropout rate.
      dtype: the dtype of the computation; None for float32. Parameters, the softmax of the
        attention and the statistics of the normalization are float32.
    """

    num_classes: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Returns the logits of the token after each position; dropout depends on `train`.

        Args:
          tokens: integers of shape (sequences, length).
          train: whether dropout is on.

        Returns:
          Logits of shape (sequences, length, num_classes). Those of a position depend on the tokens
          up to and including it.
        """

        def dropped(x: jax.Array) -> Any:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        positions = self.param(
            "positions", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        x = nn.Embed(self.num_classes, self.width, dtype=self.dtype)(tokens)
        x = dropped(x + positions.astype(x.dtype))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            y = nn.LayerNorm(dtype=self.dtype)(x)
            y = nn.MultiHeadDotProductAttention(
                self.heads, dtype=self.dtype, force_fp32_for_softmax=True
            )(y, mask=mask)
            x = x + dropped(y)
            y = nn.gelu(
                nn.Dense(4 * self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
            )
            x = x + dropped(nn.Dense(self.width, dtype=self.dtype)(y))
        logits: jax.Array = nn.Dense(self.num_classes, dtype=self.dtype)(
            nn.LayerNorm(dtype=self.dtype)(x)
        )
        return logits
