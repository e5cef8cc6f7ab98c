"""tanh with custom backward passes, as in flash attention, implicit layers and ODE solvers."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def fused_tanh(x):
    """tanh with a custom backward pass, which has a custom derivative too."""
    return jnp.tanh(x)


@jax.custom_vjp
def fused_backward(x, g):
    return g * (1 - jnp.tanh(x) ** 2)


fused_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (fused_backward(x, g),))
fused_backward.defvjp(
    lambda x, g: (fused_backward(x, g), (x, g)),
    lambda residuals, c: jax.vjp(lambda x, g: g * (1 - jnp.tanh(x) ** 2), *residuals)[1](c),
)


@jax.custom_vjp
def opaque_tanh(x):
    """tanh with a custom backward pass that cannot be differentiated."""
    return jnp.tanh(x)


opaque_tanh.defvjp(
    lambda x: (jnp.tanh(x), x),
    lambda x, g: (jax.pure_callback(lambda x, g: g / jnp.cosh(x) ** 2, x, x, g),),
)
