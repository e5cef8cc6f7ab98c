"""Small NNX models for the tests of train steps, and a plain Optax loop."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.steps import CLASSES

GRAPH: dict[str, Any] = {}
TREE = {"graph": False}
HAS_TREE_MODE = "graph" in inspect.signature(nnx.Optimizer.__init__).parameters  # Flax ≥ 0.12.8
MODES = [GRAPH, TREE] if HAS_TREE_MODE else [GRAPH]

in_both_modes = pytest.mark.parametrize(
    "mode", [pytest.param(mode, id="tree" if mode else "graph") for mode in MODES]
)


class Plain(nnx.Module):
    """A tanh network without BatchNorm and dropout, whose loss is a mean over the examples."""

    def __init__(self, rngs: nnx.Rngs, dtype: Any = None) -> None:
        self.body = nnx.Linear(4, 8, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.tanh(self.body(x)))


class Noisy(nnx.Module):
    """Two dense layers with BatchNorm and dropout between them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, use_scale=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.tanh(self.norm(self.body(x)))))


class Mask(nnx.Module):
    """A model whose output is its weight times its dropout mask."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jnp.ones(16))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(jnp.ones((len(x), 16))) * self.weight[...]


class Cache(nnx.Variable):
    """A type of Variable that Flax does not know."""


class Remembering(Plain):
    """Counts its calls and stores its last input; it also holds arrays outside Variables."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.cache = Cache({"last": jnp.zeros(4), "examples": jnp.zeros((), jnp.int32)})
        self.constants = nnx.data((jnp.full(4, 2.0), [jnp.ones(4)]))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        self.cache["last"] = x[-1]
        self.cache["examples"] += len(x)
        return super().__call__(x * self.constants[0])


class Tied(nnx.Module):
    """Applies one layer twice."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.tanh(self.first(x)))


class Stacked(nnx.Module):
    """Three noisy blocks whose Variables and random keys are stacked, run by a scan."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        make = nnx.vmap(Noisy, in_axes=0, out_axes=0)
        self.blocks = nnx.split_rngs(splits=3)(lambda rngs: make(rngs))(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def run(x: jax.Array, block: Noisy) -> jax.Array:
            return jnp.pad(block(x), ((0, 0), (0, 1)))

        return nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)


class Adapter(nnx.Variable):
    """Weights that are trained while those of the base network are frozen."""


class Adapted(nnx.Module):
    """A frozen network of wide layers, with one small trained factor per layer."""

    def __init__(self, rngs: nnx.Rngs, width: int = 256) -> None:
        layers = [nnx.Linear(width, width, rngs=rngs) for _ in range(4)]
        self.layers = nnx.data(layers)
        self.factors = nnx.data([Adapter(jnp.ones(width)) for _ in layers])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, factor in zip(self.layers, self.factors, strict=True):
            x = nnx.tanh(layer(x)) * factor[...]
        return x


def in_float64(model: Any) -> Any:
    """The model with its floating-point Variables in double precision."""

    def widen(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    nnx.update(model, jax.tree.map(widen, nnx.state(model)))
    return model


def arrays(node: Any, kind: Any = nnx.Variable) -> list[Any]:
    """Copies of the arrays in a node's Variables of one type; random keys as their data."""

    def copy(x: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jnp.copy(jax.random.key_data(x) if is_key else x)

    return [copy(x) for x in jax.tree.leaves(nnx.state(node, kind))]


def pure(step: Callable[..., Any], model: Any, optimizer: Any) -> Any:
    """The step as a pure function of a state and a batch, and the state before the first step."""
    graphdef, state = nnx.split((model, optimizer))

    def pure_step(state: Any, batch: Any) -> Any:
        model, optimizer = nnx.merge(graphdef, state)
        metrics = step(model, optimizer, batch)
        return nnx.state((model, optimizer)), metrics

    return pure_step, state


def trained(
    model: Any,
    tx: Any,
    batches: Any,
    loss_fn: Any = classification_loss,
    mode: Any = (),
    **options: Any,
) -> Any:
    """The model, its optimizer and the last metrics, after one step on each batch."""
    optimizer = Optimizer(model, tx, wrt=nnx.Param, **dict(mode))
    step = nnx.jit(make_train_step(loss_fn, **options), **dict(mode))
    for batch in batches:
        metrics = step(model, optimizer, batch)
    return model, optimizer, metrics


class PlainLoop:
    """A plain Optax loop, written by hand as pure functions of arrays."""

    def __init__(self, model: Any, tx: Any, loss_fn: Any, wrt: Any = nnx.Param) -> None:
        self.loss_fn, self.tx, self.wrt = loss_fn, tx, wrt
        self.graphdef, params, rest = nnx.split(model, wrt, ...)
        self.params, self.params_def = jax.tree.flatten(params)
        self.rest, self.rest_def = jax.tree.flatten(rest)
        self.opt_state = tx.init(self.params)
        self.jitted = jax.jit(self.pure_step)

    def clean_pass(self, params: Any, rest: Any, batch: Any) -> Any:
        """The loss, and what the model holds afterwards in addition to the parameters."""
        states = self.params_def.unflatten(params), self.rest_def.unflatten(rest)
        model = nnx.merge(self.graphdef, *states)
        out = self.loss_fn(model, batch)
        loss = out[0] if isinstance(out, tuple) else out
        return loss, jax.tree.leaves(nnx.split(model, self.wrt, ...)[2])

    def pure_step(self, params: Any, rest: Any, opt_state: Any, batch: Any) -> Any:
        gradient = jax.grad(self.clean_pass, has_aux=True)
        grads, new_rest = gradient(params, rest, batch)
        updates, opt_state = self.tx.update(
            grads, opt_state, params, grad_fn=lambda params: gradient(params, rest, batch)[0]
        )
        return optax.apply_updates(params, updates), new_rest, opt_state

    def run(self, *batches: Any) -> "PlainLoop":
        for batch in batches:
            state = self.params, self.rest, self.opt_state
            self.params, self.rest, self.opt_state = self.jitted(*state, batch)
        return self

    @property
    def state(self) -> Any:
        """What the model holds in addition to the parameters."""
        return self.rest_def.unflatten(self.rest)
