"""Batch sharpness: the curvature of the loss on a batch along the gradient on that batch."""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.hvp import exact_hvp
from flatreg._core.tree import inner, unit
from flatreg.measures.checks import check_batch_loss, checked_leading_axis
from flatreg.measures.dataset import BatchLossFn
from flatreg.measures.estimate import Estimate
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params


def batch_sharpness(loss_fn: BatchLossFn, params: Params, batches: Any) -> Estimate:
    """Batch sharpness, E[gᵀHg/‖g‖²] with the gradient g and the Hessian H of the same batch.

    Under stochastic gradient descent with learning rate η, it rises to 2/η and hovers there, while
    λ_max of the loss on all data stays below.

    Each batch costs one gradient and one Hessian-vector product. The batches are processed one
    after another. A batch whose gradient is zero counts as zero.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean loss over a batch.
      params: the parameters.
      batches: a tree of arrays with a leading axis of batches, for example
        ``(x[indices], labels[indices])`` with ``indices`` of shape (batches, batch size). Draw them
        as training does: independent batches with replacement for SGD with replacement.

    Returns:
      :class:`Estimate` of a scalar. The standard error is that of a mean over independent batches.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if the leaves have different numbers of batches, or there are fewer than two.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w, scale: jnp.sum(scale * w**2) / 2
      >>> found = measures.batch_sharpness(loss_fn, jnp.ones(2), jnp.array([1.0, 2.0, 3.0]))
      >>> print(f"{found.value:.2f} ± {found.standard_error:.2f}")
      2.00 ± 0.58

    References:
      Andreyev and Beneventano, `Edge of Stochastic Stability: Revisiting the Edge of Stability for
      SGD <https://arxiv.org/abs/2412.20553>`_, 2024.
    """
    example = "(x[indices], labels[indices])"
    count = checked_leading_axis("batch_sharpness", "batches", batches, example)
    if count < 2:
        raise ValueError(
            "batch_sharpness needs at least two batches to give a standard error, got one: for "
            f"example, write batches={example} with indices of shape (64, 32)."
        )
    batches = jax.tree.map(jnp.asarray, batches)
    check_batch_loss("batch_sharpness", loss_fn, params, jax.tree.map(lambda x: x[0], batches))
    params = in_float32_or_wider(params)

    def sharpness(batch: Any) -> jax.Array:
        g, product = exact_hvp(lambda params: jax.grad(loss_fn)(params, batch), params)
        return inner(unit(g), product(unit(g)))  # gᵀHg/‖g‖²

    values = jax.lax.map(sharpness, batches)
    return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / count**0.5)
