"""Small Linen models for the tests of train states and steps, and a plain Optax loop."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flatreg.linen import TrainState
from tests.support.steps import CLASSES


class Plain(nn.Module):
    """A tanh network without BatchNorm and dropout, whose loss is a mean over the examples."""

    width: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.tanh(nn.Dense(self.width, dtype=self.dtype, param_dtype=x.dtype, name="body")(x))
        return nn.Dense(CLASSES, dtype=self.dtype, param_dtype=x.dtype, name="head")(x)


class Noisy(nn.Module):
    """Two dense layers with BatchNorm and dropout between them."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(8, use_bias=False, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(not train, momentum=0.9, use_scale=False, param_dtype=x.dtype)(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.tanh(x))
        return nn.Dense(CLASSES, use_bias=False, param_dtype=x.dtype)(x)


class Mask(nn.Module):
    """A model whose output is its weight times its dropout mask; it may store the last mask."""

    remember: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, x.shape[1:])
        mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x))
        if self.remember:
            self.variable("seen", "mask", jnp.zeros_like, x).value = mask
        return mask * weight


def state_of(model: nn.Module, tx: Any, x: Any, **kwargs: Any) -> TrainState:
    """The state before the first step, with its own copy of the parameters."""
    variables = jax.tree.map(jnp.copy, _variables(model, x.shape, x.dtype))
    fields = {
        "apply_fn": model.apply,
        "params": variables.pop("params"),
        "tx": tx,
        "batch_stats": variables.pop("batch_stats", {}),
        "collections": variables,
        "key": jax.random.key(2),
    }
    return TrainState.create(**fields | kwargs)


@functools.cache
def _variables(model: nn.Module, shape: tuple[int, ...], dtype: Any) -> Any:
    init = jax.jit(model.init, static_argnames="train")
    variables = init(jax.random.key(1), jnp.ones(shape, dtype), train=False)
    return jax.tree.map(lambda x: x.astype(dtype), variables)  # BatchNorm starts in float32


def step_keys(state: TrainState, names: tuple[str, ...] = ("dropout",), call: int = 0) -> Any:
    """The random keys of one call of the model, by the documented rule."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), call)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))


def clean_forward(state: TrainState, params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Loss and new statistics of one training pass, written by hand."""
    x, labels = batch
    logits, updated = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        x,
        train=True,
        rngs=step_keys(state),
        mutable=["batch_stats"],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, updated.get("batch_stats", {})


def plain_step(state: TrainState, batch: Any) -> TrainState:
    """A step of a plain Optax loop, written by hand with ``jax.grad`` and ``tx.update``."""

    def oracle(params: Any) -> Any:
        return jax.grad(clean_forward, argnums=1, has_aux=True)(state, params, batch)

    grads, batch_stats = oracle(state.params)
    updates, opt_state = state.tx.update(
        grads, state.opt_state, state.params, grad_fn=lambda params: oracle(params)[0]
    )
    params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, batch_stats=batch_stats
    )


def trained(step: Any, state: TrainState, batches: Any) -> TrainState:
    """The state after one step on each batch; the step may also return metrics."""
    for batch in batches:
        out = step(state, batch)
        state = out[0] if type(out) is tuple else out
    return state
