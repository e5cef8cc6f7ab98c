"""BatchNorm: the momentum of all networks, and the statistics of one batch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

MOMENTUM = 0.9  # of the running statistics, which converge within one epoch of a small data set


def statistics_of(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Returns the statistics of one batch alone, in the form of the network's `batch_stats`.

    Args:
      model: a network of this folder with BatchNorm.
      variables: its parameters and statistics. The values of the statistics are not used.
      x: the inputs of the batch.
    """
    zero = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = model.apply(
        {**variables, "batch_stats": zero},
        x,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},  # comes after the last BatchNorm
    )
    return jax.tree.map(lambda new: new / (1 - MOMENTUM), updated["batch_stats"])
