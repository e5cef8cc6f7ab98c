"""The networks, in Flax Linen: an MLP and a small CNN here, ResNet-18 and a small ViT beside.

All use GELU: gradient penalties want a smooth activation (arXiv 2401.10809). All have a field
`dtype` for the computation, None for that of the inputs; parameters are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from benchmarks.common.cli import UsageError
from benchmarks.common.data import Dataset
from benchmarks.common.models import convolution as _convolution
from benchmarks.common.models.resnet import ResNet
from benchmarks.common.models.vit import Vit

NAMES = ("mlp", "cnn", "resnet18", "vit")
# What `--model` takes after a network's name, with values to try.
SETTINGS: dict[str, dict[str, float]] = {
    "mlp": {"width": 512, "dropout": 0.5},
    "cnn": {"width": 16, "dropout": 0.1},
    "resnet18": {"width": 16, "blocks": 1},
    "vit": {"width": 48, "depth": 2, "heads": 2, "dropout": 0.1},
}
# The layers' widths that the first one's decides.
_WIDTHS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "mlp": lambda width: {"hidden": (width, width)},
    "cnn": lambda width: {"channels": (width, 2 * width, 2 * width)},
    "resnet18": lambda width: {"widths": tuple(width * 2**stage for stage in range(4))},
}
SMALLEST_IMAGE = 8  # for which ResNet's last stage still is an image


class Mlp(nn.Module):
    """Dense layers with GELU and dropout between them."""

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


def build(spec: str, data: Dataset, **sizes: Any) -> nn.Module:
    """Returns a network in a size that suits the data.

    Args:
      spec: one of `NAMES`, and settings after colons as in `vit:width=48:depth=2`: `SETTINGS`.
      data: what it is for.
      **sizes: further fields of the network.
    """
    name, fields = _read(spec)
    fields = {"num_classes": data.num_classes, **fields, **sizes}
    shape = data.x_train.shape[1:]
    if name == "mlp":
        width = 256 if data.x_train[0].size > 256 else 128
        return Mlp(**{"hidden": (width, width), **fields})
    if len(shape) != 3:
        raise UsageError(
            f"--model {name} needs images, but an example here has the shape {shape}. Take --model "
            "mlp, or save the examples as (examples, height, width, channels)."
        )
    on_cpu = jax.default_backend() == "cpu"
    convolve = _convolution.by_patches if on_cpu else jax.lax.conv_general_dilated
    fields = {"convolve": convolve, **fields}
    if name == "cnn":
        return Cnn(**{"channels": (32, 64, 64), **fields})
    if min(shape[:2]) < SMALLEST_IMAGE:
        raise UsageError(
            f"--model {name} needs images of {SMALLEST_IMAGE}×{SMALLEST_IMAGE} or more, but here "
            f"they are {shape[0]}×{shape[1]}. Take --model cnn."
        )
    return ResNet(**fields) if name == "resnet18" else Vit(**fields)


def _read(spec: str) -> tuple[str, dict[str, Any]]:
    """The name of a network, and its fields that the settings after it decide."""
    name, *settings = spec.split(":")
    if name not in NAMES:
        raise UsageError(f"Unknown --model {name!r}: take one of {', '.join(NAMES)}.")
    values: dict[str, float] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        kind = float if key == "dropout" else int
        try:
            if key not in SETTINGS[name] or key in values:
                raise ValueError
            values[key] = kind(text)
            if not (0 <= values[key] < 1 if key == "dropout" else values[key] >= 1):
                raise ValueError
        except ValueError:
            known = ", ".join(f"{k}={v}" for k, v in SETTINGS[name].items())
            raise UsageError(
                f"In --model {spec}: {name} cannot take {setting!r}, or has it twice. It takes "
                f"{known or 'no settings'}, say: whole numbers from 1, dropout in [0, 1)."
            ) from None
    if name == "vit" and values.get("width", 192) % values.get("heads", 3):
        raise UsageError(f"In --model {spec}: the width must be a multiple of the heads.")
    width = values.pop("width", None) if name in _WIDTHS else None
    return name, values | (_WIDTHS[name](width) if width else {})
