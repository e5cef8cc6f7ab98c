"""Finding the states of a given type inside an optimizer state."""

from types import UnionType
from typing import Any

import jax


def states_of_type(kind: type | UnionType, opt_state: Any) -> list[Any]:
    """Return all states of a given type, in the order of the tree.

    A state that is nested inside another state of this type is not listed separately.

    Args:
      kind: the type, or a union of types.
      opt_state: the optimizer state, or any other tree.

    Returns:
      The states; an empty list if the tree contains none.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]
