"""The type of a function of a batch, and checks of its inputs and outputs."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

BatchFn: TypeAlias = Callable[..., jax.Array]
"""``f(x, *args)`` maps a batch of shape (batch, …) to (batch,) or (batch, outputs)."""


def check_inputs(x: jax.Array) -> None:
    """Checks that ``x`` is a batch of floating-point inputs, as differentiation requires."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(
            f"a gradient with respect to x needs floating-point inputs, got {jnp.result_type(x)}: "
            "for images, pass x.astype(jnp.float32) / 255; for text, pass embeddings, not tokens."
        )
    if jnp.ndim(x) == 0 or not jnp.shape(x)[0]:
        raise ValueError(
            f"x must be a batch of shape (batch, …), got shape {jnp.shape(x)}: for a single "
            "example, pass x[None]."
        )


def check_outputs(shape: tuple[int, ...], examples: int) -> None:
    """Checks that ``shape`` is (batch,) or (batch, outputs)."""
    if len(shape) not in (1, 2) or shape[0] != examples:
        raise ValueError(
            f"f must map a batch of {examples} examples to an array of shape ({examples},) or "
            f"({examples}, outputs), got {shape}. To flatten the other axes, pass "
            "lambda x: f(x).reshape(len(x), -1). If f takes one example without a batch axis, pass "
            "jax.vmap(f)."
        )
