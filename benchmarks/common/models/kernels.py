"""The linear maps of the kernels of the networks in this folder, by the names of their layers."""

from typing import Any

import jax

from flatreg import lipschitz

GRID = 16  # the least number of places per axis of a convolution
ATTENTION_INPUTS = ("query", "key", "value")


def operators(params: Any) -> dict[str, lipschitz.LinearMap]:
    """Returns the linear map of every kernel.

    The size of the input is not known here. A convolution is taken as circular with stride 1, on a
    grid of at least 16 places per axis.

    Args:
      params: the parameters of one of the networks of this folder.
    """
    found: dict[str, lipschitz.LinearMap] = {}
    for keys, kernel in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        *_, layer, leaf = ("", *path.split("/"))
        if leaf != "kernel":
            continue
        if layer.startswith("Conv"):
            spatial = tuple(max(GRID, 2 * extent) for extent in kernel.shape[:-2])
            found[path] = lipschitz.Convolution((*spatial, kernel.shape[-2]), padding="CIRCULAR")
        elif layer in ATTENTION_INPUTS:
            found[path] = lipschitz.Dense(contracting=(0,))
        else:
            found[path] = lipschitz.Dense()
    return found
