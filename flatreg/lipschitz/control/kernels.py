"""Finds the kernels in a tree of parameters, and their linear maps.

By default a kernel is a leaf called ``kernel``, which is how Flax names the kernels of dense layers
and convolutions. Biases, scales of normalization layers and embeddings are left alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from flatreg._core.tree import named_leaves
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.linear import LinearMap
from flatreg.typing import Params

GRID = 16  # the minimum number of frequencies per axis if the size of the input is unknown

Operators: TypeAlias = Mapping[str, LinearMap]
"""Linear maps by the paths of their kernels, as :func:`linear_maps` returns them."""

Where: TypeAlias = Callable[[str], bool]
"""A predicate on the path of a leaf, such as ``"params/Dense_0/kernel"``."""


def is_kernel(path: str) -> bool:
    """Whether the leaf is called ``kernel``, in Linen, NNX or any other tree."""
    return path.rpartition("/")[2] == "kernel"


def check_params(name: str, params: Params | None) -> None:
    """Checks that ``update`` was given the parameters."""
    if params is None:
        raise ValueError(
            f"{name} needs the parameters: write updates, state = tx.update(grads, state, params)."
        )


def choose_kernels(
    name: str, params: Params | None, operators: Operators | None, where: Where | None
) -> dict[str, jax.Array]:
    """Returns the chosen leaves by path.

    Args:
      name: the function that chooses, for error messages.
      params: the tree of parameters.
      operators: if given, its paths are the candidates. Otherwise, the candidates are the leaves
        called ``kernel``, or all leaves if ``where`` is given.
      where: if given, keeps only the candidates for whose path it is true.
    """
    check_params(name, params)
    leaves = named_leaves(params)
    if operators is not None and not operators.keys() <= leaves.keys():
        unknown = ", ".join(sorted(operators.keys() - leaves.keys()))
        raise ValueError(
            f"{name}: operators contains the paths {unknown}, but the paths of the parameters are "
            f"{', '.join(leaves)}. Trace the same tree: write operators=flatreg.lipschitz."
            "linear_maps(lambda params, x: …, params, x)."
        )
    keep = where or (is_kernel if operators is None else lambda path: True)
    candidates = leaves if operators is None else operators
    chosen = {path: leaves[path] for path in candidates if keep(path)}
    if not chosen:
        raise ValueError(
            f"{name} finds no kernel among the leaves ({', '.join(leaves)}). Select kernels, for "
            "example with where=lambda path: path.endswith('w'), or pass operators=flatreg."
            "lipschitz.linear_maps(function, params, x)."
        )
    return chosen


def linear_map_of(path: str, kernel: Any, operators: Operators | None) -> LinearMap:
    """Returns the linear map of a kernel.

    Without ``operators``, a kernel with two axes is dense, and one with three to five axes is a
    convolution with stride 1 and circular padding.
    """
    if operators is not None:
        return operators[path]
    if kernel.ndim == 2:
        return Dense()
    if not 3 <= kernel.ndim <= 5:
        raise ValueError(
            f"{path} has shape {kernel.shape}, which does not determine a linear map: leave it out "
            f"with where=lambda path: path != {path!r}, or, if its last axis is the output, pass "
            f"operators={{{path!r}: flatreg.lipschitz.Dense()}}."
        )
    sizes = (max(GRID, 2 * extent) for extent in kernel.shape[:-2])
    return Convolution((*sizes, kernel.shape[-2]), padding="CIRCULAR")
