"""A model's Variables in a pure loss: every pass has its own, and one says what it has changed.

``nnx.split`` hands out the model's own Variables, so a loss that closes over them would count every
pass. Here each pass runs on new Variables, made of the same arrays. What the clean pass has changed
comes back as auxiliary data; what the shifted passes change is dropped.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Graph mode takes every model apart, those of tree mode too. Flax < 0.12.6 has no other mode.
GRAPH: Any = {"graph": True} if hasattr(nnx, "set_graph_mode") else {}
as_pure: Callable[[Any], Any] = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure


def splitter(optimizer: Any) -> Callable[[Any], Any]:
    """What splits a model: structure, parameters, random streams, other Variables, the rest."""
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(
            "a train step takes (model, optimizer, batch), but its second argument is a "
            f"{type(optimizer).__name__}: write optimizer = nnx.Optimizer(model, tx, "
            "wrt=nnx.Param) and train_step(model, optimizer, batch)."
        )

    trained = nnx.All(optimizer.wrt)  # which lets an Ellipsis be first

    def split(model: Any) -> Any:
        parts = nnx.split(model, trained, nnx.RngState, nnx.Variable, ..., **GRAPH)
        if not jax.tree.leaves(parts[1]):
            raise ValueError(
                f"the optimizer's wrt, {optimizer.wrt!r}, picks no Variable of "
                f"{type(model).__name__}: write nnx.Optimizer(model, tx, wrt=nnx.Param), or the "
                "type of Variable that you want to train."
            )
        return parts

    return split


def copied(state: Any) -> Any:
    """New Variables of the same arrays."""
    return jax.tree.map(lambda x: x, state)


def folded(streams: Any, numbers: jax.Array | None) -> Any:
    """The streams with the first number folded into every key, stacked keys too."""
    if numbers is None:
        return streams
    number, fold_in = numbers[0], jnp.vectorize(jax.random.fold_in)

    def fold(x: jax.Array) -> jax.Array:
        return fold_in(x, number) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(fold, streams)


def changes_of(before: Any, after: Any) -> list[jax.Array | None]:
    """The new arrays, None for those that stayed: frozen weights are no auxiliary data."""
    structures: Any = jax.tree.structure(before), jax.tree.structure(after)
    if structures[0] != structures[1]:
        raise ValueError(
            "loss_fn made or removed Variables of the model, or changed what they hold: take out "
            "what was sown before it returns, nnx.pop(model, nnx.Intermediate), and fill caches "
            "before the first step."
        )
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [None if new is old else new for old, new in pairs]


def changed(state: Any, changes: list[jax.Array | None], finite: jax.Array | bool) -> Any:
    """The state after the changes, if the step was finite."""
    leaves, structure = jax.tree.flatten(state)
    pairs = zip(leaves, changes, strict=True)
    new = [old if new is None else jnp.where(finite, new, old) for old, new in pairs]
    return jax.tree.unflatten(structure, new)
