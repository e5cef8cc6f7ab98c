"""The two networks, in Flax Linen.

Both use GELU: gradient penalties want a smooth activation (arXiv 2401.10809).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from benchmarks import _convolution
from benchmarks._data import Dataset
from benchmarks._errors import UsageError


class Mlp(nn.Module):
    """Dense layers with GELU between them."""

    hidden: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; `train` makes no difference here."""
        del train
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class Cnn(nn.Module):
    """Strided convolutions with BatchNorm, the mean over the image, dropout and a dense layer."""

    channels: Sequence[int]
    num_classes: int
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; BatchNorm and dropout depend on `train`."""
        for width in self.channels:
            x = nn.Conv(
                width, (3, 3), strides=2, use_bias=False, conv_general_dilated=self.convolve
            )(x)
            # momentum .9: the statistics settle within an epoch of a small data set
            x = nn.gelu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes)(x)


def build(name: str, data: Dataset) -> nn.Module:
    """Returns the network `name`, `mlp` or `cnn`, in a size that suits the data."""
    shape = data.x_train.shape[1:]
    if name == "mlp":
        width = 256 if data.x_train[0].size > 256 else 128
        return Mlp((width, width), data.num_classes)
    if len(shape) != 3:
        raise UsageError(
            f"--model cnn needs images, but an example here has the shape {shape}. Take --model "
            "mlp, or save the examples as (examples, height, width, channels)."
        )
    on_cpu = jax.default_backend() == "cpu"
    convolve = _convolution.by_patches if on_cpu else jax.lax.conv_general_dilated
    return Cnn((32, 64, 64), data.num_classes, convolve)
