"""The networks, in Flax Linen: an MLP and a small CNN here, ResNet-18 and a small ViT beside.

All use GELU: gradient penalties want a smooth activation (arXiv 2401.10809). All have a field
`dtype` for the computation, None for that of the inputs; parameters are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from benchmarks import _convolution
from benchmarks._data import Dataset
from benchmarks._errors import UsageError
from benchmarks._resnet import ResNet
from benchmarks._vit import Vit

NAMES = ("mlp", "cnn", "resnet18", "vit")
SMALLEST_IMAGE = 8  # for which ResNet's last stage still is an image


class Mlp(nn.Module):
    """Dense layers with GELU between them."""

    hidden: Sequence[int]
    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits; `train` makes no difference here."""
        del train
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.gelu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


class Cnn(nn.Module):
    """Strided convolutions with BatchNorm, the mean over the image, dropout and a dense layer."""

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
            # momentum .9: the statistics settle within an epoch of a small data set
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)
            x = nn.gelu(norm(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


def build(name: str, data: Dataset, **sizes: Any) -> nn.Module:
    """Returns the network `name`, one of `NAMES`, in a size that suits the data or in `sizes`."""
    shape = data.x_train.shape[1:]
    if name == "mlp":
        width = 256 if data.x_train[0].size > 256 else 128
        return Mlp(num_classes=data.num_classes, **{"hidden": (width, width), **sizes})
    if len(shape) != 3:
        raise UsageError(
            f"--model {name} needs images, but an example here has the shape {shape}. Take --model "
            "mlp, or save the examples as (examples, height, width, channels)."
        )
    on_cpu = jax.default_backend() == "cpu"
    convolve = _convolution.by_patches if on_cpu else jax.lax.conv_general_dilated
    fields = {"num_classes": data.num_classes, "convolve": convolve, **sizes}
    if name == "cnn":
        return Cnn(**{"channels": (32, 64, 64), **fields})
    if min(shape[:2]) < SMALLEST_IMAGE:
        raise UsageError(
            f"--model {name} needs images of {SMALLEST_IMAGE}×{SMALLEST_IMAGE} or more, but here "
            f"they are {shape[0]}×{shape[1]}. Take --model cnn."
        )
    return ResNet(**fields) if name == "resnet18" else Vit(**fields)
