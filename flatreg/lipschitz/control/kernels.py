"""Finds the kernels in a tree of parameters, and their linear maps.

``operators``, from :func:`linear_maps` or by hand, says what each kernel does. Without it, a kernel
is a leaf called ``kernel``, which is how Flax names the kernels of dense layers and convolutions,
and only a kernel with two axes is unambiguous: it is a dense kernel (in, out), or (out, in), which
has the same norm. A kernel with more axes may be a convolution, a grouped convolution, an attention
kernel or a stack of layers, which have different norms, so it raises an error.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax

from flatreg._core.tree import is_bias_or_scale, named_leaves
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.function import Linear
from flatreg.lipschitz.operators.linear import LinearMap
from flatreg.lipschitz.operators.masked import Masked
from flatreg.lipschitz.operators.stacked import Stacked
from flatreg.typing import Params

Operators: TypeAlias = Mapping[str, LinearMap]
"""Linear maps by the paths of their kernels, as :func:`linear_maps` returns them."""

Where: TypeAlias = Callable[[str], bool]
"""A predicate on the path of a leaf, such as ``"params/Dense_0/kernel"``."""

LayerMap: TypeAlias = Dense | Convolution | Linear
"""The linear map of a single layer."""


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
    if not jax.tree.leaves(params):  # optax.tree.map_params calls init with a placeholder.
        return {}
    leaves = named_leaves(params)
    if operators is None:
        return _choose_dense(name, leaves, where)
    if not operators:
        raise ValueError(
            f"{name}: operators is empty. linear_maps(function, params, x) lists the parameters "
            "that multiply the input, and it did not find any in the function that was traced. "
            "The function may not use params, or only for biases, scales and tables of embeddings. "
            f"The leaves of the parameters are {', '.join(leaves)}."
        )
    if not operators.keys() <= leaves.keys():
        unknown = ", ".join(sorted(operators.keys() - leaves.keys()))
        raise ValueError(
            f"{name}: operators contains the paths {unknown}, but the paths of the parameters are "
            f"{', '.join(leaves)}. Trace the same tree: write operators=flatreg.lipschitz."
            "linear_maps(lambda params, x: …, params, x)."
        )
    chosen = {path: leaves[path] for path in operators if where is None or where(path)}
    if not chosen:
        raise ValueError(
            f"{name}: where does not select any path in operators ({', '.join(operators)}). "
            "Select at least one, or leave where out."
        )
    return chosen


def _choose_dense(
    name: str, leaves: dict[str, jax.Array], where: Where | None
) -> dict[str, jax.Array]:
    """Returns the kernels of dense layers, and raises if it is not clear what a leaf is."""
    keep = is_kernel if where is None else where
    chosen = {path: x for path, x in leaves.items() if keep(path)}
    if not chosen:
        raise ValueError(
            f"{name} finds no kernel among the leaves ({', '.join(leaves)}). Select kernels, for "
            "example with where=lambda path: path.endswith('w'), or pass operators=flatreg."
            "lipschitz.linear_maps(function, params, x)."
        )
    unclear = [path for path, x in chosen.items() if x.ndim != 2 or is_bias_or_scale(path)]
    if unclear:
        shapes = ", ".join(f"{path} has shape {chosen[path].shape}" for path in unclear)
        raise ValueError(
            f"{name}: {shapes}. Without operators, only leaves with two axes are treated, as dense "
            "kernels: more axes belong to convolutions, attention kernels or stacks of layers, "
            "which have different norms, and biases and scales are not kernels. Write "
            "operators=flatreg.lipschitz.linear_maps(function, params, x), or describe each kernel "
            f"by hand: operators={{{unclear[0]!r}: flatreg.lipschitz.Dense(contracting=…), …}}. To "
            "leave leaves out, select the others: where=lambda path: path.endswith('kernel') and "
            f"path not in {unclear}."
        )
    return chosen


def linear_map_of(path: str, operators: Operators | None) -> LinearMap:
    """Returns the linear map of a chosen kernel. Without ``operators``, it is dense."""
    return Dense() if operators is None else operators[path]


def opened(kernel: jax.Array, linear_map: LinearMap) -> tuple[jax.Array, LayerMap | Stacked]:
    """Returns the kernel after its mask, if it has one, and the map of the masked kernel."""
    if isinstance(linear_map, Masked):
        return linear_map.masked(kernel), linear_map.linear_map
    return kernel, linear_map


def per_layer(
    function: Callable[[jax.Array, LayerMap], jax.Array], kernel: jax.Array, linear_map: LinearMap
) -> jax.Array:
    """Returns ``function(kernel, linear_map)``, or an array of its values for a stack of layers."""
    kernel, layers = opened(kernel, linear_map)
    if not isinstance(layers, Stacked):
        return function(kernel, layers)
    one = layers.linear_map
    values: jax.Array = jax.lax.map(lambda layer: function(layer, one), layers.unstacked(kernel))
    return values


def shaped(factors: jax.Array, kernel: jax.Array, linear_map: LinearMap) -> jax.Array:
    """Returns factors of :func:`per_layer`, shaped such that they multiply the kernel."""
    inner = linear_map.linear_map if isinstance(linear_map, Masked) else linear_map
    return inner.per_layer(factors, kernel) if isinstance(inner, Stacked) else factors


def matrices(name: str, path: str, kernel: jax.Array, linear_map: LayerMap) -> jax.Array:
    """Returns the kernel as matrices (…, inputs, outputs), one per group of a convolution."""
    if isinstance(linear_map, Dense):
        return linear_map.matrix(kernel)
    if isinstance(linear_map, Convolution):
        kernel = linear_map.oriented(kernel)
        groups = linear_map.feature_group_count
        rows = math.prod(kernel.shape[:-1])
        return kernel.reshape(rows, groups, -1).swapaxes(0, 1)
    raise ValueError(
        f"{name} cannot treat {path} as a matrix, because its linear map is a function: write "
        f"operators={{{path!r}: flatreg.lipschitz.Dense(contracting=…)}}, or leave it out with "
        f"where=lambda path: path != {path!r}."
    )
