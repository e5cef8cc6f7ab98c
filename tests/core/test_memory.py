"""Microbatches save memory: the peak of temporary memory, from XLA's analysis."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg

WIDTH, EXAMPLES = 16, 8192  # activations outweigh parameters and inputs


def loss_fn(params, x):
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return jnp.mean(x**2)


def temporary_bytes(method, microbatches):
    """The temporary memory of one jitted training step, in bytes."""

    def step(params, x):
        _, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, microbatches=microbatches)(params, x)
        d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
        return optax.tree.add_scale(params, -0.1, d)

    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * 12
    x = jax.ShapeDtypeStruct((EXAMPLES, WIDTH), jnp.float32)
    return jax.jit(step).lower(params, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.nightly_except("sam")
@pytest.mark.parametrize(
    "method",
    [flatreg.sam(0.05), flatreg.gradient_regularization(0.1, hvp=flatreg.forward_hvp)],
    ids=["sam", "gradient_regularization"],
)
def test_four_microbatches_need_less_than_40_percent_of_memory(method):
    assert temporary_bytes(method, 4) < 0.4 * temporary_bytes(method, 1)
