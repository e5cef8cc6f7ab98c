"""What bad input to a measure is told: what is wrong, then the call that mends it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatreg.typing import Params


def check_weights(params: Params) -> None:
    """A tree of floating-point arrays, with one weight at least."""
    if sum(jnp.size(x) for x in jax.tree.leaves(params)) == 0:
        raise ValueError("params holds no weights: pass the parameters that were trained.")
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params holds a leaf of {jnp.result_type(leaf)}, and measures need floating "
                "point: pass the trained parameters alone, and close over the rest in loss_fn."
            )


def check_loss(name: str, loss_fn: Callable[..., Any], params: Params, *args: Any) -> None:
    """``loss_fn(params, *args)`` is a floating-point scalar of a tree of floating-point arrays."""
    check_weights(params)
    loss = jax.eval_shape(loss_fn, params, *args)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        call = "lambda params, batch:" if args else "lambda params:"
        same = "loss_fn(params, batch)" if args else "loss_fn(params)"
        raise TypeError(
            f"{name} needs the loss to return one floating-point number, got {loss}: if it returns "
            f"(loss, aux), write {call} {same}[0]; if one loss an example, write {call} "
            f"{same}.mean()."
        )


def check_sequence(name: str, value: Any, example: str) -> None:
    """``value`` has the shape (m,)."""
    shape = jnp.asarray(value).shape
    if len(shape) != 1:
        raise ValueError(
            f"{name} must be a sequence of numbers, shape (m,), got shape {shape}: "
            f"{name}={example}, say."
        )


def leading_axis(name: str, argument: str, tree: Any) -> int:
    """The length ≥ 1 of the leading axis that all leaves share."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(
            f"{name} needs every leaf of {argument} to have the same leading axis, at least 1 "
            f"long, but the shapes are {shapes}: arrange them by jax.tree.map(lambda x: "
            f"x.reshape(count, -1, *x.shape[1:]), {argument}), and keep what is no data in the "
            "loss's closure."
        )
    return int(min(sizes))
