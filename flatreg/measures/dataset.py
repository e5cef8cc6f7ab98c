"""A loss over a whole data set as one function of the parameters."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.batches import interleaved, leading_axis
from flatreg._core.tree import widened
from flatreg.typing import Params

LossFn: TypeAlias = Callable[[Params], jax.Array]
"""``loss_fn(params) -> scalar``: what every measure is taken of."""


def dataset_loss(
    loss_fn: Callable[[Params, Any], jax.Array], dataset: Any, *, batch_size: int
) -> LossFn:
    r"""L(θ) = Σ_b (n_b/n) L_b(θ): the mean over n examples, one batch in memory at a time.

    Value, gradient and Hessian-vector products run over the batches by ``lax.scan``, which compiles
    one of them whatever their number, and recompute a batch's activations instead of storing all
    of them. Every example counts the same, also those of a smaller last batch.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the *mean* over the batch's examples. Curvature
        is that of a fixed function: run BatchNorm and dropout in evaluation mode.
      dataset: a tree of arrays with the examples as leading axis. It may be sharded along it; then
        the number of examples must be a multiple of ``batch_size``, and that one of the devices.
      batch_size: examples at a time; decides about memory, not about values.

    Returns:
      The loss, which is a pytree: hand it to a jitted function as an argument, and neither is the
      data compiled into it nor is it compiled again for other data of the same shapes.

    Raises:
      ValueError: if the leaves disagree in the number of examples, or ``batch_size`` is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> x = jnp.arange(5.0)
      >>> loss = measures.dataset_loss(lambda w, x: jnp.mean((w - x) ** 2), x, batch_size=2)
      >>> print(loss(jnp.float32(2.0)), jax.grad(loss)(jnp.float32(3.0)))
      2.0 2.0
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    dataset = jax.tree.map(jnp.asarray, dataset)
    examples = leading_axis(dataset)
    count, left = divmod(examples, batch_size)
    whole = jax.tree.map(lambda x: x if not left else x[: count * batch_size], dataset)
    batches = jax.tree.map(lambda x: interleaved(x, count), whole) if count else None
    rest = jax.tree.map(lambda x: x[-left:], dataset) if left else None
    return _DatasetLoss(loss_fn, left / examples, batches, rest)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["batches", "rest"],
    meta_fields=["loss_fn", "weight_of_rest"],
)
@dataclasses.dataclass(frozen=True, eq=False)  # as a function it is hashed by its identity
class _DatasetLoss:
    """As a pytree of the same functions it is the same to ``jit``, with whatever data."""

    loss_fn: Callable[[Params, Any], jax.Array]
    weight_of_rest: float
    batches: Any
    rest: Any

    def __call__(self, params: Params) -> jax.Array:
        """L(params)."""
        one_batch = jax.checkpoint(lambda params, batch: widened(self.loss_fn(params, batch)))
        total = jnp.zeros(())
        if self.weight_of_rest:
            total = self.weight_of_rest * one_batch(params, self.rest)
        if self.batches is None:
            return total
        weight = (1 - self.weight_of_rest) / len(jax.tree.leaves(self.batches)[0])

        def add(total: jax.Array, batch: Any) -> tuple[jax.Array, None]:
            return total + weight * one_batch(params, batch), None

        first = jax.tree.map(lambda x: x[0], self.batches)
        total = total.astype(jax.eval_shape(one_batch, params, first).dtype)
        return jax.lax.scan(add, total, self.batches)[0]
