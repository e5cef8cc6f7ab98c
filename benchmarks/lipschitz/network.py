"""The networks that `python -m benchmarks.lipschitz` trains."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.common.data.dataset import Dataset
from benchmarks.common.models import convolution
from benchmarks.common.models.build import build
from benchmarks.common.models.mlp import Mlp


class CnnWithoutNorm(nn.Module):
    """Strided convolutions with GELU and a dense layer, without BatchNorm and pooling."""

    channels: Sequence[int]
    num_classes: int
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits, which do not depend on `train`."""
        del train
        for width in self.channels:
            x = nn.gelu(nn.Conv(width, (3, 3), 2, conv_general_dilated=self.convolve)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Network(NamedTuple):
    """A network in two forms that compute the same function with the same parameters.

    Attributes:
      model: the form for training, whose convolutions are fast on the device at hand.
      transparent: the form with XLA's own convolution, which `flatreg.lipschitz` can bound.
      init: returns the parameters, given a key.
    """

    model: nn.Module
    transparent: nn.Module
    init: Callable[[jax.Array], Any]

    def logits(self, params: Any, x: jax.Array) -> jax.Array:
        """Returns the logits of a batch, by the form for training."""
        return jnp.asarray(self.model.apply({"params": params}, x, train=False))

    def transparent_logits(self, params: Any, x: jax.Array) -> jax.Array:
        """Returns the logits of a batch, by the form that can be bounded."""
        return jnp.asarray(self.transparent.apply({"params": params}, x, train=False))


def network(name: str, data: Dataset) -> Network:
    """Returns the network `mlp` or `cnn` in a size that suits the data."""
    model = transparent = build(name, data)  # checks that a CNN gets images
    if not isinstance(model, Mlp):
        transparent = CnnWithoutNorm((32, 64), data.num_classes)
        on_cpu = jax.default_backend() == "cpu"
        model = transparent.clone(convolve=convolution.by_patches) if on_cpu else transparent
    example = jnp.asarray(data.x_train[:1])
    init = jax.jit(lambda key: transparent.init(key, example, train=False)["params"])
    return Network(model, transparent, init)
