"""Recomputes the statistics of BatchNorm, which those of two solutions do not determine."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatreg.measures.checks import checked_leading_axis
from flatreg.typing import Params


def with_batch_statistics(
    loss_fn: Callable[[Params, Any], jax.Array],
    statistics_fn: Callable[[Params, Any], Any],
    batches: Any,
) -> Callable[[Params], jax.Array]:
    """A loss that recomputes the statistics of BatchNorm for every point in weight space.

    Between two solutions, neither solution's statistics fit the activations. This function first
    computes the mean of the statistics of all batches, and then the loss with this mean. The
    statistics are constants in derivatives, as in evaluation mode.

    Args:
      loss_fn: ``loss_fn(params, statistics)``, the loss in evaluation mode: a scalar, or a vector
        with one loss per example.
      statistics_fn: ``statistics_fn(params, batch) -> statistics``, the statistics of one batch, a
        tree such as Flax's ``batch_stats``. They must be those of this batch alone: set
        ``momentum=0.0`` in ``flax.linen.BatchNorm``, and return the ``batch_stats`` that a pass in
        training mode changed.
      batches: a tree of arrays with a leading axis of batches, all of the same size.

    Returns:
      A loss ``params -> loss`` for :func:`barrier`, :func:`bezier_path` and all other measures.

    Raises:
      ValueError: if the leaves have different numbers of batches.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss = measures.with_batch_statistics(
      ...     lambda w, mean: (w - mean) ** 2,
      ...     lambda w, batch: w * jnp.mean(batch),
      ...     jnp.array([[1.0, 3.0], [2.0, 6.0]]),
      ... )
      >>> print(loss(2.0))  # the mean of the statistics is 2 · 3
      16.0

    References:
      Izmailov et al., `Averaging Weights Leads to Wider Optima and Better Generalization
      <https://arxiv.org/abs/1803.05407>`_, UAI 2018.
    """
    checked_leading_axis("with_batch_statistics", "batches", batches, "x[indices]")
    batches = jax.tree.map(jnp.asarray, batches)

    def loss(params: Params) -> jax.Array:
        each = jax.lax.map(lambda batch: statistics_fn(params, batch), batches)
        statistics = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
        return loss_fn(params, jax.lax.stop_gradient(statistics))

    return loss
