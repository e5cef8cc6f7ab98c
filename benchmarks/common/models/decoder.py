"""A decoder-only transformer whose layers are one loop, for programs that compile fast.

All layers have the same shape, so their parameters are stacked and `jax.lax.scan` runs over them.
The compiled program contains one layer. The backward pass computes the activations
inside a layer again, so that memory holds only the inputs of the layers.

Vaswani et al., 'Attention Is All You Need', 2017, with the pre-normalization of GPT-2 and RMSNorm
(arXiv 1910.07467), without biases and without weight tying.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax


def _unchanged(x: Any) -> Any:
    return x


class DecoderLayer(nn.Module):
    """Causal self-attention and two dense layers, each with a residual connection.

    Attributes:
      width: the embedding dimension.
      heads: the number of attention heads, a divisor of `width`.
      dtype: the dtype of the computation.
      place: what is applied to the activations at the end.
    """

    width: int
    heads: int
    dtype: Any
    place: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """Returns the activations after the layer, and None because `nn.scan` needs a pair."""
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, use_bias=False, force_fp32_for_softmax=True
        )
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        x = x + attention(nn.RMSNorm(dtype=self.dtype)(x), mask=mask)
        y = nn.gelu(dense(4 * self.width)(nn.RMSNorm(dtype=self.dtype)(x)))
        return self.place(x + dense(self.width)(y)), None


class Decoder(nn.Module):
    """A decoder-only transformer for sequences of a fixed length.

    Attributes:
      num_classes, width, depth, heads: as in `Transformer`.
      dtype: the dtype of the computation. Parameters, the softmax of the attention and the
        statistics of the normalization are float32.
      gather: what is applied to the parameters of each part of the network before it uses them:
        the embeddings, one layer, the logits. With sharded parameters, this is where a device gets
        the shards of the others.
      place: what is applied to the activations after each part.
    """

    num_classes: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    dtype: Any = None
    gather: Callable[[Any], Any] = _unchanged
    place: Callable[[jax.Array], jax.Array] = _unchanged

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Returns the logits of the token after each position.

        Args:
          tokens: integers of shape (sequences, length).
          train: whether the network is trained, which makes no difference.

        Returns:
          Logits of shape (sequences, length, num_classes). Those of a position depend on the tokens
          up to and including it.
        """
        del train  # a decoder without dropout

        # The stored parameters are made from what `gather` returns during initialization.
        gather = _unchanged if self.is_initializing() else self.gather

        def gathered(module: Any) -> Any:
            return nn.map_variables(module, "params", trans_in_fn=gather, init=True)

        positions = self.param(
            "positions", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        embedding = gathered(nn.Embed)(
            self.num_classes, self.width, dtype=self.dtype, name="embedding"
        )(tokens)
        x = self.place(embedding + positions.astype(embedding.dtype))
        layers = nn.scan(
            nn.remat(gathered(DecoderLayer), prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = layers(self.width, self.heads, self.dtype, self.place, name="layers")(
            x, nn.make_causal_mask(tokens[:1])
        )
        logits: jax.Array = gathered(nn.Dense)(
            self.num_classes, use_bias=False, dtype=self.dtype, name="logits"
        )(nn.RMSNorm(dtype=self.dtype)(x))
        return logits
