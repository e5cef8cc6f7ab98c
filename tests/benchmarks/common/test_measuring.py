"""The measurement of a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.common import measuring
from benchmarks.common.models.mlp import Mlp


def test_flatness_agrees_with_the_dense_hessian():
    """λ_max and the trace match the eigenvalues; R⁰ lies between its first and second order."""
    model = Mlp((5,), 3)
    keys = jax.random.split(jax.random.key(0), 2)
    x, labels = jax.random.normal(keys[0], (40, 4)), jnp.arange(40) % 3
    variables = model.init(keys[1], x, train=False)
    flat, unravel = ravel_pytree(variables)

    def loss(flat):
        logits = model.apply(unravel(flat), x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = measuring._flatness(model, True, variables, (x, labels), jax.random.key(0))
    eigenvalues = np.linalg.eigvalsh(jax.hessian(loss)(flat))
    assert found["lambda_max"] == pytest.approx(eigenvalues[-1], rel=1e-3)
    error = found["trace"] - eigenvalues.sum()
    assert abs(error) < 4 * found["trace_standard_error"]
    slope = np.linalg.norm(jax.grad(loss)(flat))
    rho = measuring.RHO
    second_order = rho * slope + rho**2 * eigenvalues[-1] / 2  # bound to 3rd order
    assert rho * slope < found["zeroth_order_flatness"] < 1.01 * second_order
    assert found["zeroth_order_flatness"] <= found["first_order_flatness"]
