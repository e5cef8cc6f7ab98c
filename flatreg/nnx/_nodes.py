"""A pass on copies of the model and of the NNX objects among the further arguments of a loss.

Such objects, for example ``nnx.Rngs`` or a second network, are treated like the model: every pass
runs a copy, and only the changes of the clean pass are written back. They hold nothing that is
trained.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from flatreg._core.devices import AxisName
from flatreg.nnx._dropout_counts import advance_counts, fold_in_part
from flatreg.nnx._variables import (
    ModelChanges,
    SplitModel,
    merged_copy,
    model_changes,
    split_model,
    split_nodes,
    with_changes,
)


class Arguments(NamedTuple):
    """The further arguments of a step, without NNX objects, and the objects.

    Attributes:
      args: the positional arguments, with None in place of NNX objects.
      kwargs: the keyword arguments, with None in place of NNX objects.
      places: the positions and the names of the objects.
      nodes: the NNX objects.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: tuple[int | str, ...]
    nodes: tuple[Any, ...]


class PassChanges(NamedTuple):
    """What a pass has changed in the model and in the NNX objects among the further arguments."""

    model: ModelChanges
    nodes: ModelChanges


def without_nodes(args: Sequence[Any], kwargs: dict[str, Any]) -> Arguments:
    """Separate the NNX objects among the arguments from the others."""
    every: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    nodes = {place: x for place, x in every if isinstance(x, nnx.Pytree)}
    rest_args = tuple(None if i in nodes else x for i, x in enumerate(args))
    rest_kwargs = {name: None if name in nodes else x for name, x in kwargs.items()}
    return Arguments(rest_args, rest_kwargs, tuple(nodes), tuple(nodes.values()))


def with_nodes(
    places: Sequence[int | str], nodes: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with NNX objects in their places."""
    new = dict(zip(places, nodes, strict=True))
    new_args = [new.get(i, x) for i, x in enumerate(args)]
    return new_args, {name: new.get(name, x) for name, x in kwargs.items()}


def copies_for_part(
    before: SplitModel,
    example_numbers: jax.Array | None,
    axis_name: AxisName | None,
    changes: ModelChanges | None = None,
) -> tuple[SplitModel, tuple[Any, ...]]:
    """Return the objects as a pass over a part of the batch starts from them, and copies of them.

    Args:
      before: the objects before the step.
      example_numbers: the indices of the examples in this part, or None.
      axis_name: the axis over whose devices the batch is divided, or None.
      changes: what an earlier function of the same pass has changed in the objects, or None. The
        copies contain these changes.
    """
    start = before._replace(rng_state=fold_in_part(before.rng_state, example_numbers, axis_name))
    if changes is None:
        return start, merged_copy(start)
    rng_state = with_changes(start.rng_state, changes.rng_state, keep=True)
    variables = with_changes(start.variables, changes.variables, keep=True)
    return start, merged_copy(start._replace(rng_state=rng_state, variables=variables))


def changes_of_nodes(start: SplitModel, copies: tuple[Any, ...]) -> ModelChanges:
    """Collect what a pass has changed in the copies."""
    return model_changes(start, split_nodes(copies))


def run_on_copies(
    function: Callable[..., Any],
    model: SplitModel,
    nodes: SplitModel,
    further: Arguments,
    example_numbers: jax.Array | None,
    axis_name: AxisName | None,
) -> tuple[Any, PassChanges]:
    """Call a function of the model with copies; return its output and what it has changed.

    Args:
      function: the function, ``function(model, *args, **kwargs)``.
      model: the model before the step, with the parameters of this pass.
      nodes: the NNX objects among the further arguments before the step.
      further: the further arguments of this pass, with the places of the NNX objects.
      example_numbers: the indices of the examples in this part of the batch, or None.
      axis_name: the axis over whose devices the batch is divided, or None.
    """
    rng_state = fold_in_part(model.rng_state, example_numbers, axis_name)
    start = model._replace(rng_state=rng_state)
    copy = merged_copy(start)
    nodes, copies = copies_for_part(nodes, example_numbers, axis_name)
    args, kwargs = with_nodes(further.places, copies, further.args, further.kwargs)
    out = function(copy, *args, **kwargs)
    changes = model_changes(start, split_model(copy, start.wrt))
    return out, PassChanges(changes, changes_of_nodes(nodes, copies))


def update_nodes(
    nodes: tuple[Any, ...], before: SplitModel, changes: ModelChanges, keep: jax.Array | bool
) -> None:
    """Write the changes of the clean pass to the objects.

    Args:
      nodes: the objects.
      before: the objects before the step.
      changes: what the clean pass has changed.
      keep: whether to keep changes other than those of random counts.
    """
    if nodes:
        rng_state = advance_counts(before.rng_state, changes.rng_state)
        nnx.update(nodes, rng_state, with_changes(before.variables, changes.variables, keep=keep))
