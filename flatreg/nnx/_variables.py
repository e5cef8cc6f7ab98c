"""Running an NNX model as a pure function: split it, run a copy, and collect the changes.

``nnx.split`` returns the model's own Variables, so a loss that runs the model itself would update
the statistics and counts in every pass. Instead, each pass runs a copy of the model that has its
own Variables with the same arrays. The changes of the clean pass are returned as auxiliary data,
and the changes of the perturbed passes are discarded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

# Graph mode can split every model, including those of tree mode. Flax < 0.12.6 has only this mode.
GRAPH: Any = {"graph": True} if hasattr(nnx, "set_graph_mode") else {}
as_pure: Callable[[Any], Any] = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure

Changes: TypeAlias = list[jax.Array | None]
"""The new array of each leaf that a pass has changed, None for each leaf that stayed the same."""


class SplitModel(NamedTuple):
    """The parts of a model that a train step treats differently.

    Attributes:
      graphdef: the structure of the model.
      params: the Variables that the optimizer trains, as a pure tree of arrays.
      rng_state: the keys and counts of random streams, ``nnx.RngState``.
      variables: all other Variables: BatchNorm statistics, caches, frozen weights.
      arrays: arrays that the model holds outside Variables.
      wrt: the filter that selected ``params``.
    """

    graphdef: Any
    params: Any
    rng_state: Any
    variables: Any
    arrays: Any
    wrt: Any


class ModelChanges(NamedTuple):
    """The changes that a pass has made to a model.

    Attributes:
      rng_state: the changes of the random streams, which are the increased counts.
      variables: the changes of all other Variables that are not trained.
    """

    rng_state: Changes
    variables: Changes


def split_model(model: Any, wrt: Any) -> SplitModel:
    """Split a model.

    Args:
      model: the model, any graph node.
      wrt: the filter that selects the Variables to train, such as ``nnx.Param``.

    Returns:
      The parts, with the Variables of the model itself.

    Raises:
      ValueError: if the filter selects no Variable.
    """
    trained = nnx.All(wrt)  # Flax accepts a bare Ellipsis only as the last filter.
    parts: Any = nnx.split(model, trained, nnx.RngState, nnx.Variable, ..., **GRAPH)
    graphdef, params, rng_state, variables, arrays = parts
    if not jax.tree.leaves(params):
        raise ValueError(
            f"the optimizer's wrt, {wrt!r}, selects no Variable of {type(model).__name__}: write "
            "nnx.Optimizer(model, tx, wrt=nnx.Param), or the type of Variable that you want to "
            "train."
        )
    return SplitModel(graphdef, as_pure(params), rng_state, variables, arrays, wrt)


def split_nodes(nodes: tuple[Any, ...]) -> SplitModel:
    """Split NNX objects that hold nothing to train; ``params`` is empty."""
    nothing = nnx.Nothing()
    parts: Any = nnx.split(nodes, nothing, nnx.RngState, nnx.Variable, ..., **GRAPH)
    graphdef, params, rng_state, variables, arrays = parts
    return SplitModel(graphdef, as_pure(params), rng_state, variables, arrays, nothing)


def merged_copy(model: SplitModel) -> Any:
    """Return a copy of the model that has the same arrays but its own Variables."""
    rng_state, variables = copied((model.rng_state, model.variables))
    return nnx.merge(model.graphdef, model.params, rng_state, variables, model.arrays)


def copied(state: Any) -> Any:
    """Return new Variables that hold the same arrays."""
    return jax.tree.map(lambda x: x, state)


def model_changes(before: SplitModel, after: SplitModel) -> ModelChanges:
    """Collect the arrays that a pass has changed.

    Unchanged arrays are left out. Otherwise, frozen weights would be part of the auxiliary data of
    the pass, and a scan over microbatches would store one copy of them per microbatch.

    Args:
      before: the model before the pass.
      after: the same model after the pass.

    Returns:
      The new arrays.

    Raises:
      ValueError: if the structure of the Variables has changed.
    """
    return ModelChanges(
        rng_state=_changes(before.rng_state, after.rng_state),
        variables=_changes(before.variables, after.variables),
    )


def _changes(before: Any, after: Any) -> Changes:
    structures: Any = jax.tree.structure(before), jax.tree.structure(after)
    if structures[0] != structures[1]:
        raise ValueError(
            "loss_fn created or removed Variables of the model, or changed the structure of what "
            "they hold. Remove sown values before the loss returns, nnx.pop(model, "
            "nnx.Intermediate), and fill caches before the first step."
        )
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [None if new is old else new for old, new in pairs]


def with_changes(state: Any, changes: Changes, *, keep: jax.Array | bool) -> Any:
    """Return Variables with the changes of a pass.

    Args:
      state: the Variables before the pass.
      changes: what the pass has changed in them.
      keep: whether to keep the changes; False returns the old arrays.

    Returns:
      The Variables after the pass.
    """
    leaves, structure = jax.tree.flatten(state)
    pairs = zip(leaves, changes, strict=True)
    new = [old if new is None else jnp.where(keep, new, old) for old, new in pairs]
    return jax.tree.unflatten(structure, new)
