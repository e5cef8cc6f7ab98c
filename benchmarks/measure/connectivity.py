"""The loss between two networks, along the segment and along a trained curve."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flatreg import measures

MOMENTUM = 0.9  # of the running statistics of BatchNorm, in all networks of the benchmarks

Examples = tuple[jax.Array, jax.Array]  # inputs and labels


class Connectivity(NamedTuple):
    """The loss between two networks.

    Attributes:
      segment: the barrier on the segment.
      curve: the barrier on a quadratic Bézier curve whose control point is trained.
    """

    segment: measures.Barrier
    curve: measures.BezierPath


@partial(jax.jit, static_argnums=(0, 1, 2))
def connectivity(
    model: nn.Module,
    batch_size: int,
    steps: int,
    variables: Any,
    other: Any,
    examples: Examples,
    key: jax.Array,
) -> Connectivity:
    """Measures the loss between two networks.

    The loss has one number per example, which gives the standard error of the barrier. The
    statistics of BatchNorm are computed again at every position.

    Args:
      model: the network.
      batch_size: the number of examples that are in memory at a time.
      steps: the number of training steps of the curve.
      variables: the variables of the first network, at the position 0.
      other: the parameters of the second network, at the position 1.
      examples: the training examples.
      key: the random key for the training of the curve.
    """
    x, _ = examples
    size = min(batch_size, len(x))

    def losses(params: Any, statistics: Any = None) -> jax.Array:
        at = {**variables, "params": params}
        if statistics is not None:
            at["batch_stats"] = statistics

        @jax.checkpoint
        def loss(example: Examples) -> jax.Array:
            x, labels = example
            logits: Any = model.apply(at, x[None], train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[None]).mean()

        found: jax.Array = jax.lax.map(loss, examples, batch_size=size)
        return found

    loss_fn: Callable[[Any], jax.Array] = losses
    if "batch_stats" in variables:

        def statistics_of(params: Any, batch: jax.Array) -> Any:
            return batch_statistics(model, {**variables, "params": params}, batch)

        batches = x[: len(x) // size * size].reshape(-1, size, *x.shape[1:])
        loss_fn = measures.with_batch_statistics(losses, statistics_of, batches)
    segment = measures.barrier(loss_fn, variables["params"], other)
    curve = measures.bezier_path(loss_fn, variables["params"], other, key, steps=steps)
    return Connectivity(segment, curve)


def batch_statistics(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Returns the statistics of one batch alone, in the form of the network's `batch_stats`.

    Args:
      model: a network with BatchNorm.
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
