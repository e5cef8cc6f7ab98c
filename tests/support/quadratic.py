"""A quadratic loss of three weights with a known Hessian."""

import jax.numpy as jnp
import numpy as np

H = np.diag([1.0, 2.0, 5.0]) + 0.5


def quadratic(w):
    """The loss wᵀHw/2."""
    return w @ jnp.asarray(H, jnp.float32) @ w / 2
