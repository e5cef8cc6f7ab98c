"""A tanh network of 535 weights trained on scikit-learn's digits, and its Hessian in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

HIDDEN = 7


def batch_loss(params, batch):
    """The mean cross-entropy of the tanh network over a batch."""
    x, labels = batch
    logits = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = logits @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits(count=300):
    """The first images, scaled to [0, 1] and flattened, and their labels."""
    x, labels = load_digits(return_X_y=True)
    return x[:count].astype(np.float32) / 16, labels[:count]


def adam(loss_fn, params, data, steps):
    """The parameters after some steps of Adam on all of the data."""
    tx = optax.adam(0.02)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, data), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    return train(params)


@functools.cache
def trained():
    """The weights in float32 after 300 steps of Adam on all examples."""
    # Concrete float32 arrays, even if the first call is inside a trace or in float64.
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), 2)
        hidden = jax.random.normal(keys[0], (64, HIDDEN)) / 8
        out = jax.random.normal(keys[1], (HIDDEN, 10)) / 3
        params = {
            "hidden": {"kernel": hidden, "bias": jnp.zeros(HIDDEN)},
            "out": {"kernel": out, "bias": jnp.zeros(10)},
        }
        return jax.device_get(adam(batch_loss, params, jax.tree.map(jnp.asarray, digits()), 300))


def flat_loss(loss_fn, params, data):
    """The loss as a function of one vector in float64, and that vector for the parameters."""
    flat, unravel = ravel_pytree(jax.tree.map(np.float64, jax.device_get(params)))
    x, labels = data
    data = jnp.asarray(x, jnp.float64), jnp.asarray(labels)
    return (lambda w: loss_fn(unravel(w), data)), flat


@functools.cache
def dense_hessian():
    """The Hessian of the loss over all examples as a matrix, in float64."""
    with jax.enable_x64(True):
        loss_fn, flat = flat_loss(batch_loss, trained(), digits())
        return np.array(jax.jit(jax.hessian(loss_fn))(flat))


def in_bfloat16_and_float32(params):
    """The parameters rounded to bfloat16, and the same numbers in float32."""
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    return rounded, jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
