"""The loss over a whole data set as one function of the parameters."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.batches import interleaved
from flatreg._core.tree import widened
from flatreg.measures.checks import checked_leading_axis, checked_scalar
from flatreg.typing import Params

LossFn: TypeAlias = Callable[[Params], jax.Array]
"""``loss_fn(params) -> scalar``: the function that every measure examines."""

BatchLossFn: TypeAlias = Callable[[Params, Any], jax.Array]
"""``loss_fn(params, batch) -> scalar``: the mean loss over the examples of a batch.

A batch is a tree of arrays.
"""


def dataset_loss(loss_fn: BatchLossFn, dataset: Any, *, batch_size: int) -> LossFn:
    r"""The mean loss over a data set, computed with only one batch in memory at a time.

    For n examples, split into batches b of n_b examples, the loss is L(θ) = Σ_b (n_b/n) L_b(θ).
    Every example therefore has the same weight, including those in a smaller last batch.

    The value, the gradient and Hessian-vector products loop over the batches with ``lax.scan``.
    Only the computation on a single batch is compiled, regardless of the number of batches. The
    backward pass recomputes the activations of each batch instead of storing those of all batches.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the *mean* over the examples of the batch. The
        loss must be a fixed function of the parameters: use BatchNorm and dropout in evaluation
        mode.
      dataset: a tree of arrays whose leading axis indexes the examples. It may be sharded along
        that axis. In that case, the number of examples must be a multiple of ``batch_size``, and
        ``batch_size`` must be a multiple of the number of devices.
      batch_size: the number of examples per batch. It affects only the memory use, not the values.

    Returns:
      The loss, ``params -> scalar``. It is a pytree with the data as leaves. If you pass it to a
      jitted function as an argument, the data are not embedded in the compiled program as
      constants, and other data of the same shapes do not trigger recompilation.

    Raises:
      ValueError: if the leaves have different numbers of examples, or ``batch_size`` is below 1.
      TypeError: when the loss is called, if ``loss_fn(params, batch)`` does not return one number.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> x = jnp.arange(5.0)
      >>> loss = measures.dataset_loss(lambda w, x: jnp.mean((w - x) ** 2), x, batch_size=2)
      >>> print(loss(jnp.float32(2.0)), jax.grad(loss)(jnp.float32(3.0)))
      2.0 2.0
    """
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}: for example, write batch_size=1000."
        )
    dataset = jax.tree.map(jnp.asarray, dataset)
    examples = checked_leading_axis("dataset_loss", "dataset", dataset, "(x, labels)")
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
@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as functions are
class _DatasetLoss:
    """A loss with the data as pytree leaves, so that ``jit`` compiles it once per ``loss_fn``."""

    loss_fn: BatchLossFn
    weight_of_rest: float
    batches: Any
    rest: Any

    def __call__(self, params: Params) -> jax.Array:
        """Returns the loss L(params)."""
        first = self.rest
        if self.batches is not None:
            first = jax.tree.map(lambda x: x[0], self.batches)
        checked_scalar("dataset_loss", self.loss_fn, params, first)
        number = 0 if self.batches is None else len(jax.tree.leaves(self.batches)[0])
        if number + (self.rest is not None) == 1:  # There is only one batch.
            return jnp.asarray(widened(self.loss_fn(params, first)))
        one_batch = jax.checkpoint(lambda params, batch: widened(self.loss_fn(params, batch)))
        total = jnp.zeros(())
        if self.weight_of_rest:
            total = self.weight_of_rest * one_batch(params, self.rest)
        weight = (1 - self.weight_of_rest) / number

        def add(total: jax.Array, batch: Any) -> tuple[jax.Array, None]:
            return total + weight * one_batch(params, batch), None

        total = total.astype(jax.eval_shape(one_batch, params, first).dtype)
        return jax.lax.scan(add, total, self.batches)[0]
