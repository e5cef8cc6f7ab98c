"""The networks of the command, and those of a user's configuration file.

A network is a kind and its sizes. The batch grows with the number of chips: each has the same
number of examples.
"""

import pathlib
import tomllib
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.common.cli import UsageError
from benchmarks.common.models.decoder import Decoder
from benchmarks.common.models.resnet import ResNet50
from benchmarks.scale.layout import Layout

Sizes = dict[str, Any]

TRANSFORMER: Sizes = {
    "kind": "transformer",
    "width": 2048,
    "depth": 18,
    "heads": 16,
    "vocabulary": 32768,
    "length": 2048,
    "examples_per_chip": 1,
}
RESNET: Sizes = {
    "kind": "resnet",
    "width": 64,
    "blocks": [3, 4, 6, 3],
    "classes": 1000,
    "image": 224,
    "examples_per_chip": 64,
}
KINDS = {sizes["kind"]: sizes for sizes in (TRANSFORMER, RESNET)}
NETWORKS: dict[str, Sizes] = {
    "resnet50": RESNET,
    "transformer-0.1b": TRANSFORMER
    | {"width": 640, "depth": 12, "heads": 10, "examples_per_chip": 4},
    "transformer-1b": TRANSFORMER,
    "transformer-7b": TRANSFORMER | {"width": 4096, "depth": 32, "heads": 32},
}
QUICK: dict[str, Sizes] = {
    "transformer-tiny": TRANSFORMER
    | {"width": 64, "depth": 3, "heads": 4, "vocabulary": 256, "length": 16},
}
EXAMPLE = """[networks.mine]
kind = "transformer"
width = 3072
depth = 26
heads = 24
length = 4096"""


class Problem(NamedTuple):
    """A network on chips.

    Attributes:
      model: the network.
      apply_fn: its `apply` function, with the parameters gathered where they are used.
      inputs: the shape of a batch of inputs.
      labels: the shape of its labels.
    """

    model: nn.Module
    apply_fn: Any
    inputs: jax.ShapeDtypeStruct
    labels: jax.ShapeDtypeStruct


def read(path: str) -> dict[str, Sizes]:
    """Reads the networks of a configuration file in TOML, as in `EXAMPLE`.

    Raises:
      UsageError: if the file cannot be read or a network in it is not valid.
    """
    try:
        found = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))["networks"]
        return {name: _complete(path, name, sizes) for name, sizes in found.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            f"--config {path} cannot be read ({type(error).__name__}: {error}). Write the sizes of "
            f"a network as in the example at the end of --help."
        ) from error


def _complete(path: str, name: str, given: Sizes) -> Sizes:
    """Returns the sizes of a network, with the defaults of its kind."""
    kind = given.get("kind", "transformer")
    if kind not in KINDS:
        raise UsageError(
            f"In {path}: network {name} has the kind {kind!r}. Write kind = "
            f"{' or kind = '.join(repr(one) for one in KINDS)}."
        )
    for key, value in given.items():
        expected = KINDS[kind].get(key)
        numbers = value if isinstance(value, list) else [value]
        right = isinstance(value, type(expected)) and (
            key == "kind" or all(type(one) is int and one > 0 for one in numbers)
        )
        if not right:
            known = ", ".join(f"{key} = {size}" for key, size in KINDS[kind].items())
            raise UsageError(
                f"In {path}: {key} = {value!r} of network {name} is not valid. The sizes of a "
                f"{kind}, with their defaults: {known}."
            )
    sizes = KINDS[kind] | given
    if kind == "transformer" and sizes["width"] % sizes["heads"]:
        raise UsageError(
            f"In {path}: the width of network {name} must be a multiple of its heads, such as "
            f"width = {-(-sizes['width'] // sizes['heads']) * sizes['heads']}."
        )
    return sizes


def build(sizes: Sizes, layout: Layout) -> Problem:
    """Returns a network that computes in bfloat16, with float32 parameters, on the chips."""
    batch, placed = sizes["examples_per_chip"] * layout.mesh.size, layout.of_batch()
    shape = partial(jax.ShapeDtypeStruct, sharding=placed)
    if sizes["kind"] == "transformer":
        decoder = Decoder(
            num_classes=sizes["vocabulary"],
            width=sizes["width"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            dtype=jnp.bfloat16,
            gather=layout.gather,
            place=layout.place,
        )
        tokens = shape((batch, sizes["length"]), jnp.int32)
        return Problem(decoder, decoder.apply, tokens, tokens)
    resnet = ResNet50(sizes["classes"], sizes["width"], tuple(sizes["blocks"]), jnp.bfloat16)

    def apply_fn(variables: Any, *args: Any, **kwargs: Any) -> Any:
        params = layout.gather(variables["params"])
        return resnet.apply({**variables, "params": params}, *args, **kwargs)

    images = shape((batch, sizes["image"], sizes["image"], 3), jnp.bfloat16)
    return Problem(resnet, apply_fn, images, shape((batch,), jnp.int32))
