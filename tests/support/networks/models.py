"""Small Flax networks with dropout: an MLP, a CNN with BatchNorm, a vision transformer.

Each function returns ``loss_fn, params, batch, key`` with ``loss_fn(params, batch, key) -> (loss,
aux)``, where ``aux`` contains the new BatchNorm statistics, if there are any.
"""

from typing import Any

import flax.linen as nn
import jax
import optax

CLASSES = 10


class MLP(nn.Module):
    """An MLP: dense layers with GELU, LayerNorm and dropout."""

    width: int = 512

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.gelu(nn.LayerNorm()(nn.Dense(self.width)(x)))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class CNN(nn.Module):
    """A CNN: three convolutions with BatchNorm and GELU, average pooling, dropout."""

    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for strides in (1, 2, 2):
            x = nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)
            x = nn.gelu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(CLASSES)(x)


class ViT(nn.Module):
    """A vision transformer: patch embedding, pre-norm encoder blocks, mean over the patches."""

    width: int = 64
    patch: int = 8
    blocks: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def drop(x: jax.Array) -> jax.Array:
            return nn.Dropout(0.1, deterministic=not train)(x)

        x = nn.Conv(self.width, (self.patch, self.patch), self.patch)(x)
        x = x.reshape(len(x), -1, self.width)
        x = drop(x + self.param("position", nn.initializers.normal(0.02), x.shape[1:]))
        for _ in range(self.blocks):
            attend = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=not train)
            x = x + drop(attend(nn.LayerNorm()(x)))
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + drop(nn.Dense(self.width)(drop(hidden)))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(axis=1))


def mlp(examples: int, **sizes: int) -> Any:
    return _problem(MLP(**sizes), examples, (16, 16, 3))


def cnn(examples: int, **sizes: int) -> Any:
    return _problem(CNN(**sizes), examples, (32, 32, 3))


def vit(examples: int, **sizes: int) -> Any:
    return _problem(ViT(**sizes), examples, (32, 32, 3))


def _problem(model: nn.Module, examples: int, shape: tuple[int, ...]) -> Any:
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(keys[0], (examples, *shape))
    labels = jax.random.randint(keys[1], (examples,), 0, CLASSES)
    variables = jax.jit(model.init, static_argnames="train")(keys[2], images[:2], train=False)
    statistics = {k: v for k, v in variables.items() if k != "params"}

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        images, labels = batch
        logits, statistics_now = model.apply(
            {"params": params, **statistics},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=list(statistics),
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, statistics_now

    return loss_fn, variables["params"], (images, labels), keys[3]
