"""ResNet-18 in its form for small images: a stem of 3×3 and no pooling in front of the blocks.

He, Zhang, Ren and Sun, 'Deep Residual Learning for Image Recognition', CVPR 2016, arXiv 1512.03385.
Its ReLU is a GELU here, as in all networks of the benchmarks: gradient penalties want a smooth
activation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax


class Block(nn.Module):
    """Two 3×3 convolutions beside the identity, or beside a 1×1 where the shape changes."""

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the activations of the block."""
        y = self.conv(self.width, (3, 3), self.stride)(x)
        y = self.conv(self.width, (3, 3))(nn.gelu(self.norm()(y)))
        y = self.norm()(y)
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.width, (1, 1), self.stride)(x))
        return nn.gelu(x + y)


class ResNet(nn.Module):
    """Stages of residual blocks, each but the first at half the resolution of the one before.

    The defaults are ResNet-18 with 11 million weights. `dtype` is that of the computation; the
    parameters and BatchNorm's statistics stay in float32.
    """

    num_classes: int
    widths: Sequence[int] = (64, 128, 256, 512)
    blocks: int = 2
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; BatchNorm depends on `train`."""
        conv = partial(
            nn.Conv, use_bias=False, dtype=self.dtype, conv_general_dilated=self.convolve
        )
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = nn.gelu(norm()(conv(self.widths[0], (3, 3))(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = Block(width, 2 if stage > 0 and block == 0 else 1, conv, norm)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
