"""The further arguments of a loss function: what a step passes to it after the batch."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.oracle import positions


def further_argnums(key_argnums: int | Sequence[int] | None, fixed: Sequence[str]) -> list[int]:
    """Return the numbers of the key arguments among the further arguments, counted from 0.

    Args:
      key_argnums: the numbers of the loss's arguments that are random keys, or None.
      fixed: the names of the loss's arguments that come before the further ones.

    Returns:
      The numbers.

    Raises:
      ValueError: if a number is not that of a further argument.
    """
    argnums = [1 + position for position in positions(key_argnums)]
    if any(i < len(fixed) for i in argnums):
        raise ValueError(
            f"key_argnums={key_argnums!r} must name arguments after loss_fn({', '.join(fixed)}), "
            f"which have the numbers {len(fixed)}, {len(fixed) + 1}, …: for loss_fn("
            f"{', '.join(fixed)}, key) write key_argnums={len(fixed)}."
        )
    return [i - len(fixed) for i in argnums]


def check_further_arguments(
    loss_fn: Callable[..., Any],
    fixed: Sequence[str],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    call: str,
    name: str = "loss_fn",
) -> None:
    """Raise an error if the loss function does not take the arguments of this step.

    Args:
      loss_fn: the loss function, or another function that takes the same arguments.
      fixed: the names of the loss's arguments that every step provides.
      args: the further positional arguments of this step.
      kwargs: the keyword arguments of this step.
      call: the call of the step without further arguments, for the error message.
      name: the name of the function, for the error message.

    Raises:
      TypeError: if the loss function takes other arguments.
    """
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # The signature is unknown.
        return
    try:
        signature.bind(*[None] * len(fixed), *args, **kwargs)
    except TypeError as error:
        advice = f"Pass what the loss needs after the batch: {call[:-1]}, key)."
        if name == "forward_fn":
            advice = (
                "forward_fn receives the same further arguments as loss_fn: write def forward_fn("
                f"{', '.join(fixed)}, *args, **kwargs): …."
            )
        raise TypeError(
            f"the step calls {name}({', '.join(fixed)}, …) with {len(args)} further positional "
            f"arguments and the keyword arguments {sorted(kwargs)}, but {name} takes {signature} "
            f"({error}). {advice}"
        ) from None


def check_keys_are_named(args: Sequence[Any], kwargs: dict[str, Any], named: list[int]) -> None:
    """Raise an error if the parts of a batch would share a random key.

    Args:
      args: the further positional arguments of a step that divides its batch.
      kwargs: the keyword arguments of the step.
      named: the numbers of the arguments whose keys are folded.

    Raises:
      ValueError: if an argument number is out of range, or if an argument that is not named
        contains a typed random key.
    """
    if named and max(named) >= len(args):
        raise ValueError(
            f"key_argnums names more arguments than the step received after the batch, {len(args)}:"
            " pass the key as a positional argument."
        )
    others = [arg for i, arg in enumerate(args) if i not in named], kwargs
    if any(map(_is_key, jax.tree.leaves(others))):
        raise ValueError(
            "a further argument of the step contains a random key, and every microbatch or shard "
            "would use the same one. Pass the key as a positional argument and name it: "
            "make_train_step(loss_fn, key_argnums=…), so that each part has its own key. To share "
            "one key on purpose, pass jax.random.key_data(key)."
        )


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
