"""ResNet-18 for small images, with a 3×3 stem and no pooling before the blocks, and ResNet-50.

He, Zhang, Ren and Sun, 'Deep Residual Learning for Image Recognition', CVPR 2016, arXiv 1512.03385.
GELU replaces ReLU, as in all networks of the benchmarks, because gradient penalties need a smooth
activation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax


class Block(nn.Module):
    """A residual block of two 3×3 convolutions.

    The shortcut is the identity, or a 1×1 convolution where the shape changes.

    Attributes:
      width: the number of output channels.
      stride: the stride of the first convolution.
      conv: makes a convolution.
      norm: makes a BatchNorm.
    """

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
    """A residual network; each stage after the first halves the resolution.

    The defaults are ResNet-18 with 11 million parameters.

    Attributes:
      num_classes: the number of logits.
      widths: the number of channels in each stage.
      blocks: the number of residual blocks per stage.
      convolve: the convolution, with the signature of `jax.lax.conv_general_dilated`.
      dtype: the dtype of the computation; None for that of the inputs. Parameters and BatchNorm
        statistics are float32.
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


class BottleneckBlock(Block):
    """A residual block of a 1×1, a 3×3 and a 1×1 convolution with four times as many channels.

    `width` and `stride` are those of the 3×3 convolution.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the activations of the block."""
        y = nn.gelu(self.norm()(self.conv(self.width, (1, 1))(x)))
        y = nn.gelu(self.norm()(self.conv(self.width, (3, 3), self.stride)(y)))
        y = self.norm()(self.conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.width, (1, 1), self.stride)(x))
        return nn.gelu(x + y)


class ResNet50(nn.Module):
    """A residual network of bottleneck blocks, for images of ImageNet's size.

    The defaults are ResNet-50 with 26 million parameters.

    Attributes:
      num_classes: the number of logits.
      width: the number of channels of the first stage; each stage doubles it.
      blocks: the number of residual blocks of each stage.
      dtype: the dtype of the computation; None for that of the inputs. Parameters and BatchNorm
        statistics are float32.
    """

    num_classes: int = 1000
    width: int = 64
    blocks: Sequence[int] = (3, 4, 6, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; BatchNorm depends on `train`."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = nn.gelu(norm()(conv(self.width, (7, 7), 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BottleneckBlock(self.width * 2**stage, stride, conv, norm)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
