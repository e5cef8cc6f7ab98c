"""Builds a network from its name and settings, as in `--model vit:width=48:depth=2`.

All networks use GELU, because gradient penalties need a smooth activation (arXiv 2401.10809). All
have a field `dtype` for the computation (None: that of the inputs); parameters are float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from benchmarks.common.cli import UsageError
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.models import convolution
from benchmarks.common.models.cnn import Cnn
from benchmarks.common.models.mlp import Mlp
from benchmarks.common.models.resnet import ResNet
from benchmarks.common.models.transformer import Transformer
from benchmarks.common.models.vit import Vit

NAMES = ("mlp", "cnn", "resnet18", "vit", "transformer")
# The settings that `--model` accepts after the name of a network, with example values.
SETTINGS: dict[str, dict[str, float]] = {
    "mlp": {"width": 512, "dropout": 0.5},
    "cnn": {"width": 16, "dropout": 0.1},
    "resnet18": {"width": 16, "blocks": 1},
    "vit": {"width": 48, "depth": 2, "heads": 2, "dropout": 0.1},
    "transformer": {"width": 128, "depth": 4, "heads": 4, "dropout": 0.1},
}
# The fields that the setting `width` decides.
_WIDTHS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "mlp": lambda width: {"hidden": (width, width)},
    "cnn": lambda width: {"channels": (width, 2 * width, 2 * width)},
    "resnet18": lambda width: {"widths": tuple(width * 2**stage for stage in range(4))},
}
SMALLEST_IMAGE = 8  # pixels per side, so that the last stage of the ResNet still sees an image


def build(spec: str, data: Dataset, **sizes: Any) -> nn.Module:
    """Returns a network of a size that suits the data.

    Args:
      spec: one of `NAMES`, followed by settings after colons, as in `vit:width=48:depth=2`.
        `SETTINGS` lists those of each network.
      data: the data set that decides the shape of the inputs and the number of classes.
      **sizes: further fields of the network.

    Raises:
      UsageError: if the name or a setting is unknown, or if the network does not fit the data.
    """
    name, fields = _read(spec)
    fields = {"num_classes": data.num_classes, **fields, **sizes}
    shape = data.x_train.shape[1:]
    is_text = data.x_train.dtype.kind == "i"
    if is_text != (name == "transformer"):
        raise UsageError(
            f"--model {name} does not fit the data. Give --model transformer with --data text, and "
            f"one of {', '.join(NAMES[:-1])} with other data."
        )
    if name == "transformer":
        return Transformer(**fields)
    if name == "mlp":
        width = 256 if data.x_train[0].size > 256 else 128
        return Mlp(**{"hidden": (width, width), **fields})
    if len(shape) != 3:
        raise UsageError(
            f"--model {name} needs images, but an example here has shape {shape}. Give --model "
            "mlp, or save the examples as an array of shape (examples, height, width, channels)."
        )
    on_cpu = jax.default_backend() == "cpu"
    convolve = convolution.by_patches if on_cpu else jax.lax.conv_general_dilated
    fields = {"convolve": convolve, **fields}
    if name == "cnn":
        return Cnn(**{"channels": (32, 64, 64), **fields})
    if min(shape[:2]) < SMALLEST_IMAGE:
        raise UsageError(
            f"--model {name} needs images of at least {SMALLEST_IMAGE}×{SMALLEST_IMAGE} pixels, "
            f"but these are {shape[0]}×{shape[1]}. Give --model cnn."
        )
    return ResNet(**fields) if name == "resnet18" else Vit(**fields)


def _read(spec: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of the network, and the fields that its settings decide."""
    name, *settings = spec.split(":")
    if name not in NAMES:
        raise UsageError(f"Unknown --model {name!r}. Choose one of {', '.join(NAMES)}.")
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
                f"In --model {spec}: {setting!r} is not a valid setting of {name}, or is given "
                f"twice. Settings of {name}, with example values: {known}. They are whole numbers "
                "of at least 1; dropout is in [0, 1)."
            ) from None
    widths = {"vit": (Vit.width, Vit.heads), "transformer": (Transformer.width, Transformer.heads)}
    width, heads = widths.get(name, (1, 1))
    if values.get("width", width) % values.get("heads", heads):
        raise UsageError(
            f"In --model {spec}: width must be a multiple of heads, as in {name}:width=48:heads=2."
        )
    sizes = _WIDTHS[name](values.pop("width")) if name in _WIDTHS and "width" in values else {}
    return name, values | sizes
