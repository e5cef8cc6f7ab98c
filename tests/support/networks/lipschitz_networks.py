"""Small networks for the tests of Lipschitz bounds, trained for a few steps on digits."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flatreg import lipschitz
from tests.support.trained import digits

CLASSES = 10


class Network(NamedTuple):
    """``apply(params, x)`` in evaluation mode, with parameters and inputs in float64."""

    apply: Any
    params: Any
    x: jax.Array
    labels: jax.Array

    def __call__(self, x):
        return self.apply(self.params, x)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(32)(x)))


class Cnn(nn.Module):
    """A network with strides, overlapping pooling, BatchNorm with fixed statistics, and GELU."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(x))
        x = nn.avg_pool(x, (2, 2), strides=(1, 1))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class ResNet(nn.Module):
    """Two residual blocks: one with a projected shortcut, one with an identity shortcut."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        for channels, stride in ((6, 2), (6, 1)):
            y = nn.silu(nn.Conv(channels, (3, 3), strides=stride)(x))
            y = nn.BatchNorm(use_running_average=True)(nn.Conv(channels, (3, 3))(y))
            x = x if stride == 1 else nn.Conv(channels, (1, 1), strides=stride)(x)
            x = nn.leaky_relu(x + y, 0.2)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.inward = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.inner = nnx.data([nnx.Conv(4, 4, (3, 3), rngs=rngs) for _ in range(2)])
        self.outward = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.inward(x)), approximate=False)
        for conv in self.inner:
            x = x + nnx.elu(conv(x))
        return self.outward(x.reshape(len(x), -1))


def linen(model, x):
    variables = model.init(jax.random.key(0), x)
    return model.apply, variables


def nnx_model(model, x):
    del x
    graphdef, state = nnx.split(model(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graphdef, state)(x), state


MODELS = {
    "mlp": lambda x: linen(Mlp(), x),
    "cnn": lambda x: linen(Cnn(), x),
    "resnet": lambda x: linen(ResNet(), x),
    "nnx": lambda x: nnx_model(NnxBlock, x),
}


@functools.cache
def trained_network(name: str, steps: int = 60) -> Network:
    """A network trained in float32 with Adam, which also changes its BatchNorm statistics."""
    x, labels = digits()
    x = jnp.asarray(x, jnp.float32).reshape(-1, 8, 8, 1)
    labels = jnp.asarray(labels)
    apply, params = MODELS[name](x[:1])
    tx = optax.adam(2e-2)

    def loss_fn(params):
        loss = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), labels)
        return loss.mean()

    @jax.jit
    def train_step(params, state):
        updates, state = tx.update(jax.grad(loss_fn)(params), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = train_step(params, state)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), jnp.float64), params)
        return Network(apply, wide, jnp.asarray(np.asarray(x), jnp.float64), labels)


@functools.cache
def upper_bound(name: str) -> lipschitz.LipschitzBound:
    """The Lipschitz bound of a trained network, in float64."""
    network = trained_network(name)
    with jax.enable_x64(True):
        return jax.jit(lambda params: lipschitz.lipschitz_bound(network.apply, params, network.x))(
            network.params
        )


def bound_of(f, *shape):
    """The Lipschitz bound of a function without parameters, for examples of this shape."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float64)
    return jax.jit(lambda: lipschitz.lipschitz_bound(lambda _, x: f(x), (), x))()
