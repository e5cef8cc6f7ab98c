"""Softmax regression for the tests of benchmarks.frontier, and its training by hand in NumPy."""

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.frontier.trials.contender import Contender
from benchmarks.frontier.trials.training import Recipe, batches, build
from flatreg.linen import TrainState

BATCH_SIZE, EXAMPLES, CLASSES = 20, 70, 3


class Linear(nn.Module):
    """Softmax regression. `saw` is called with the number of examples of each forward pass."""

    saw: object = None
    dtype: object = None

    @nn.compact
    def __call__(self, x, train):
        if self.saw is not None:
            jax.debug.callback(lambda: self.saw(len(x)))
        return nn.Dense(CLASSES, dtype=self.dtype)(x)


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, 5)).astype(np.float32)
    return x, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def program(contender, model=None, *, warmup=0.0, most_steps=40):
    recipe = Recipe(model or Linear(), "sgd", BATCH_SIZE, warmup, False, most_steps)
    x, y = data()
    return build(contender, recipe, jax.numpy.asarray(x), jax.numpy.asarray(y))


def by_hand(values, steps, seed, *, warmup=0.0, examples=EXAMPLES):
    """Returns the parameters after each step of SGD with momentum 0.9, decay and a schedule."""
    x, y = data()
    state = TrainState.init(Linear(), optax.sgd(0.1), jax.random.key(seed), x[:1], train=False)
    params = state.params["Dense_0"]
    w, b = np.array(params["kernel"], float), np.array(params["bias"], float)
    traces, path = [np.zeros_like(w), np.zeros_like(b)], []
    for step, batch in enumerate(batches(Contender(), steps, seed, BATCH_SIZE, examples)):
        scores = x[batch] @ w + b
        scores = np.exp(scores - scores.max(1, keepdims=True))
        residual = scores / scores.sum(1, keepdims=True) - np.eye(CLASSES)[y[batch]]
        grads = [x[batch].T @ residual / BATCH_SIZE, residual.mean(0)]
        progress = step / steps
        if progress < warmup:
            rate = values["learning_rate"] * progress / warmup
        else:
            turned = np.pi * (progress - warmup) / (1 - warmup)
            rate = values["learning_rate"] * (1 + np.cos(turned)) / 2
        for i, (p, g) in enumerate(zip((w, b), grads, strict=True)):
            traces[i] = 0.9 * traces[i] + g + values["weight_decay"] * p
            p -= rate * traces[i]
        path.append((w.copy(), b.copy()))
    return path
