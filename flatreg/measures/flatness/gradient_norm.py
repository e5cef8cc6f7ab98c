"""The norm of the gradient at one point."""

import jax

from flatreg._core.checks import checked_scale
from flatreg._core.tree import norm
from flatreg.measures.checks import check_loss
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider, times
from flatreg.typing import Params, Scale


def gradient_norm(loss_fn: LossFn, params: Params, *, scale: Scale | None = None) -> jax.Array:
    """The norm ‖T∇L‖ of the gradient, in at least float32.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the gradient.
      scale: ``params -> T`` with one factor per weight. If None, T = 1.

    Returns:
      A scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.gradient_norm(lambda w: jnp.sum(w**2) / 2, jnp.array([3.0, 4.0])))
      5.0
    """
    params = in_float32_or_wider(params)
    check_loss("gradient_norm", loss_fn, params)
    return norm(times(checked_scale(scale, params), jax.grad(loss_fn)(params)))
