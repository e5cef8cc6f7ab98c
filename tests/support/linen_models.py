"""Small Linen models for the tests of states and steps, a batch, and a plain Optax loop."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg.linen import TrainState

CLASSES = 3


class Plain(nn.Module):
    """A tanh network without BatchNorm and dropout, so that the examples do not meet."""

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
    """Its output is its dropout mask, times a weight; it may remember the last mask."""

    remember: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, x.shape[1:])
        mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x))
        if self.remember:
            self.variable("seen", "mask", jnp.zeros_like, x).value = mask
        return mask * weight


def examples(dtype: Any = jnp.float32, count: int = 16, seed: int = 0) -> tuple[Any, Any]:
    """Inputs and labels."""
    x = jax.random.normal(jax.random.key(seed), (count, 4), dtype)
    return x, jnp.arange(count) % CLASSES


def state_of(model: nn.Module, tx: Any, x: Any, **kwargs: Any) -> TrainState:
    """The state of step 0, of freshly copied parameters."""
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
    """Loss and new statistics of one training pass, written out."""
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
    """A step of a plain Optax loop, by hand: ``jax.grad`` and ``tx.update``."""

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


def chain(method: Any) -> optax.GradientTransformation:
    """The method in front of SGD with momentum."""
    return optax.chain(method, optax.sgd(0.1, momentum=0.9))


def trained(step: Any, state: TrainState, batches: Any) -> TrainState:
    """The state after one step on each batch; the step may return metrics as well."""
    for batch in batches:
        out = step(state, batch)
        state = out[0] if type(out) is tuple else out
    return state


def assert_equal(actual: Any, expected: Any) -> None:
    """Bitwise, random keys included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(x) == jnp.result_type(y)
        np.testing.assert_array_equal(_numbers(x), _numbers(y))


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Both absolutely and relatively, random keys included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(_numbers(x), _numbers(y), rtol=tolerance, atol=tolerance)


def _numbers(x: Any) -> Any:
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x
