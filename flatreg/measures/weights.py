"""Converts parameters to at least float32, and scales trees by one factor per weight."""

import jax
import jax.numpy as jnp

from flatreg._core.tree import widened
from flatreg.measures.checks import check_weights
from flatreg.typing import Grads, Params


def in_float32_or_wider(params: Params) -> Params:
    """Returns the parameters in at least float32, as curvature needs at least this precision.

    Raises:
      ValueError: if the tree is empty.
      TypeError: if a leaf does not have a floating-point dtype.
    """
    check_weights(params)
    return widened(params)


def times(factors: Params | None, tree: Grads) -> Grads:
    """Returns T·x in the dtypes of x, with one factor per weight or leaf; x without factors."""
    if factors is None:
        return tree
    return jax.tree.map(lambda t, x: jnp.asarray(t, x.dtype) * x, factors, tree)
