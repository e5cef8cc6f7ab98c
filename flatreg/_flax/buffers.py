"""Copies of arrays that occur more than once, so that a training state can be donated.

An optimizer may keep the initial parameters in its state (``optax.contrib.dog``), and a model may
start with two equal networks (a target network). Both hold one array twice. ``jax.jit`` cannot
donate it, because a buffer can be reused only once.
"""

from typing import Any

import jax
import jax.numpy as jnp


def without_shared_buffers(tree: Any) -> Any:
    """Return the tree with each repeated array copied, so that all arrays can be donated."""
    seen: set[int] = set()

    def copy_if_seen(x: Any) -> Any:
        if id(x) in seen and isinstance(x, jax.Array):
            return jnp.copy(x)
        seen.add(id(x))
        return x

    return jax.tree.map(copy_if_seen, tree)
