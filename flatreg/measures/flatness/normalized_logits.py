"""Logits whose scale carries no information, to compare the sharpness of different networks."""

import jax
import jax.numpy as jnp

from flatreg._core.tree import widened


def normalized_logits(logits: jax.Array) -> jax.Array:
    """Divides the logits of each example by their standard deviation over the classes.

    Multiplying the logits of a classifier by a constant changes its sharpness, but not its
    predictions. Apply this function to the logits inside a loss to make every measure of the loss
    invariant to that constant.

    Args:
      logits: shape (..., classes).

    Returns:
      The logits, centered and divided by their standard deviation, in at least float32. They are
      zero where all logits of an example are equal.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> logits = jnp.array([[1.0, 3.0], [10.0, 30.0], [5.0, 5.0]])
      >>> print(measures.normalized_logits(logits))
      [[-1.  1.]
       [-1.  1.]
       [ 0.  0.]]

    References:
      Andriushchenko et al., `A Modern Look at the Relationship between Sharpness and
      Generalization <https://arxiv.org/abs/2302.07011>`_, ICML 2023.
    """
    logits = widened(logits)
    centered = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    constant = variance == 0
    return jnp.where(constant, 0, centered / jnp.sqrt(jnp.where(constant, 1, variance)))
