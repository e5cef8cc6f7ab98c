"""Argument validation of the measures. Each error shows a corrected call."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.checks import PARTITION, check_arrays, check_nonnegative, is_scalar
from flatreg._core.tree import named_leaves, widened
from flatreg.typing import Params


def check_weights(params: Params) -> None:
    """Checks that ``params`` is a tree of floating-point arrays with at least one weight."""
    check_arrays("a measure", params)
    check_not_empty(params)
    for path, leaf in named_leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params contains a leaf of dtype {jnp.result_type(leaf)}, {path!r}, but measures "
                "need floating-point weights: pass only the trained parameters, and let loss_fn "
                f"close over everything else. {PARTITION}"
            )


def check_not_empty(params: Params) -> None:
    """Checks that ``params`` has at least one weight."""
    if sum(np.size(x) for x in jax.tree.leaves(params)) == 0:
        raise ValueError("params contains no weights: pass the trained parameters of the model.")


def check_loss(name: str, loss_fn: Callable[[Params], object], params: Params) -> None:
    """Checks that ``params`` and the scalar ``loss_fn(params)`` are floating-point."""
    check_weights(params)
    _check_floating(name, checked_scalar(name, loss_fn, params))


def check_batch_loss(
    name: str, loss_fn: Callable[[Params, Any], object], params: Params, batch: Any
) -> None:
    """Checks that ``params`` and the scalar ``loss_fn(params, batch)`` are floating-point."""
    check_weights(params)
    _check_floating(name, checked_scalar(name, loss_fn, params, batch))


def checked_scalar(name: str, loss_fn: Callable[..., object], *args: Any) -> Any:
    """Returns the shape and dtype of the loss, after checking that it is one number.

    Args:
      name: the public function, for error messages.
      loss_fn: ``loss_fn(params)`` or ``loss_fn(params, batch)``.
      *args: the arguments of the loss.
    """
    loss = checked_output(name, loss_fn, *args)
    if getattr(loss, "shape", None) != ():
        arguments = ", ".join(("params", "batch")[: len(args)])
        raise TypeError(
            f"{name} needs a loss that returns one floating-point number, but it returns {loss}: "
            f"if it returns one loss per example, write lambda {arguments}: "
            f"loss_fn({arguments}).mean()."
        )
    return loss


def checked_output(name: str, loss_fn: Callable[..., object], *args: Any) -> Any:
    """Returns the shape and dtype of the loss, after checking its arguments and for aux."""
    arguments = ", ".join(("params", "batch")[: len(args)])
    if not callable(loss_fn):
        raise TypeError(f"{name} needs a loss that is a function of {arguments}, got {loss_fn!r}.")
    try:
        loss = jax.eval_shape(loss_fn, *args)
    except TypeError:
        check_arguments(name, loss_fn, *args)
        raise
    if isinstance(loss, tuple | list):
        raise TypeError(
            f"{name} needs a loss that returns one number, but it returns {loss}. A loss that "
            "returns (loss, aux), as for has_aux=True, must return only the loss to a measure: "
            f"write lambda {arguments}: loss_fn({arguments})[0]."
        )
    return loss


def _check_floating(name: str, loss: Any) -> None:
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"{name} needs a loss that returns one floating-point number, but it returns {loss}: "
            "convert it with jnp.float32(loss)."
        )


def check_arguments(name: str, loss_fn: Callable[..., object], *args: Any) -> None:
    """Checks that the loss can be called with this number of arguments, without calling it."""
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # The signature is unknown.
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        arguments = ", ".join(("params", "batch")[: len(args)])
        correction = (
            "For a loss on a batch, write loss_fn = measures.dataset_loss(loss_fn, dataset, "
            "batch_size=1000), or loss_fn = lambda params: loss_fn(params, batch) for one batch."
        )
        if len(args) == 2:
            correction = (
                "Pass everything else by closing over it: for example, write lambda params, batch: "
                "loss_fn(params, batch, key)."
            )
        raise TypeError(
            f"{name} calls loss_fn({arguments}), but the arguments of this loss are {signature}. "
            f"{correction}"
        ) from error


def check_sequence(name: str, value: Any, example: str) -> None:
    """Checks that ``value`` has the shape (m,)."""
    shape = jnp.asarray(value).shape
    if len(shape) != 1:
        raise ValueError(
            f"{name} must be a sequence of numbers with the shape (m,), got shape {shape}: for "
            f"example, write {name}={example}."
        )


def check_numbers(**numbers: Any) -> None:
    """Checks that each argument is a number or 0-d array. Numbers must also be at least 0."""
    for name, value in numbers.items():
        if not is_scalar(value):
            raise TypeError(
                f"{name} must be one number, got {value!r}: for example, write {name}=0.1, or pass "
                "the .value of a measure's result."
            )
    check_nonnegative(**numbers)


def checked_leading_axis(name: str, argument: str, tree: Any, corrected: str) -> int:
    """Returns the length of the leading axis that all leaves share, which is at least 1."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(
            f"{name} needs every leaf of {argument} to have the same leading axis, with at least "
            f"one entry, but the shapes are {shapes}: for example, write {argument}={corrected}, "
            "and let the loss close over everything that is not data."
        )
    return int(min(sizes))


def broadcast_like(name: str, value: Params, tree: Params) -> Params:
    """Broadcasts ``value``, a number or a tree, to the shapes of ``tree``, in at least float32."""
    if is_scalar(value):
        value = jax.tree.map(lambda x: jnp.asarray(value, x.dtype), tree)
    value = widened(value)
    try:
        return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), value, tree)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{name} must be one number or a tree with the shapes {_shapes(tree)}, but its shapes "
            f"are {_shapes(value)}: if it is the result of a measure, pass its .value."
        ) from error


def _shapes(tree: Params) -> Any:
    return jax.tree.map(jnp.shape, tree)
