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
    x, labels = batch
    logits = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = logits @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits(count=300):
    x, labels = load_digits(return_X_y=True)
    return x[:count].astype(np.float32) / 16, labels[:count]


@functools.cache
def trained():
    """The weights in float32 after 300 steps of Adam on all examples."""
    with jax.enable_x64(False), jax.ensure_compile_time_eval():  # also if first called in a trace
        return jax.device_get(_train())


def _train():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, HIDDEN)) / 8, "bias": jnp.zeros(7)},
        "out": {"kernel": jax.random.normal(keys[1], (HIDDEN, 10)) / 3, "bias": jnp.zeros(10)},
    }
    data, tx = jax.tree.map(jnp.asarray, digits()), optax.adam(0.02)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(batch_loss)(params, data), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[0][0]

    return train(params)


@functools.cache
def dense_hessian():
    """H of the whole loss as a matrix, in float64."""
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(np.float64, trained()))
        x, labels = digits()
        batch = jnp.asarray(x, jnp.float64), jnp.asarray(labels)
        return np.array(jax.jit(jax.hessian(lambda w: batch_loss(unravel(w), batch)))(flat))
