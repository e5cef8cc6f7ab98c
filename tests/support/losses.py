"""Smooth losses that are not quadratic, on trees of parameters, in JAX's current precision.

``fused_tanh`` and ``opaque_tanh`` have custom backward passes, as flash attention, implicit layers
and ODE solvers do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class Problem(NamedTuple):
    """A loss, and the parameters at which it is tested."""

    params: Any
    loss: Callable[[Any], jax.Array]

    @property
    def vector(self) -> jax.Array:
        return flat(self.params)

    def loss_of_vector(self, w: jax.Array) -> jax.Array:
        return self.loss(ravel_pytree(self.params)[1](w))


def flat(tree: Any) -> jax.Array:
    """The tree as one vector."""
    return ravel_pytree(tree)[0]


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def network() -> Problem:
    """A tanh network with one hidden layer, on ten examples."""
    x, y = draw(4, 10, 3), draw(5, 10)

    def loss(params: Any) -> jax.Array:
        (kernel, bias), (weights, offset) = params["hidden"], params["out"]
        return jnp.mean((jnp.tanh(x @ kernel + bias) @ weights + offset - y) ** 2)

    return Problem({"hidden": (draw(0, 3, 4), draw(1, 4)), "out": [draw(2, 4), draw(3)]}, loss)


def logistic() -> Problem:
    """Logistic regression on twelve examples of five features."""
    params = {"weights": draw(7, 5), "bias": draw(8)}
    return Problem(params, lambda params: logistic_loss(params, examples()))


def logistic_loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean logistic loss over a batch of features and signs."""
    x, signs = batch
    return jnp.mean(jax.nn.softplus(-signs * (x @ params["weights"] + params["bias"])))


def examples() -> tuple[jax.Array, jax.Array]:
    """Twelve examples: features and signs."""
    return draw(6, 12, 5), jnp.sign(draw(9, 12))


def quartic() -> Problem:
    """A quartic with coupled coordinates, whose Hessian is indefinite."""
    matrix = draw(10, 6, 6)

    def loss(params: Any) -> jax.Array:
        w = flat(params)
        return jnp.sum(w**4) / 4 + w @ matrix @ w / 2 + jnp.sum(w[1:] * w[:-1] ** 2) / 2

    return Problem((draw(11, 2, 2), draw(12, 2)), loss)


PROBLEMS = [network, logistic, quartic]


def direction_of(
    method: optax.GradientTransformationExtraArgs, loss: Callable[[Any], jax.Array], params: Any
) -> Any:
    """The first direction of the method, given the gradient of the loss."""
    grad_fn = jax.grad(loss)
    return method.update(grad_fn(params), method.init(params), params, grad_fn=grad_fn)[0]


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
