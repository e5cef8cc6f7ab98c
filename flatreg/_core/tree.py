"""Whole-tree geometry that neither overflows nor divides by zero; only what ``optax.tree`` lacks.

Every norm here is taken over the whole tree, in at least float32, after dividing by the largest
entry. So gradients of 1e-23 or 3e20 have a direction, a zero gradient has the zero direction, and
a NaN or Inf makes the whole direction NaN instead of getting lost.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg.typing import Grads, Params, Scalar


def widened(tree: Params) -> Params:
    """The tree, or the array, in at least float32."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), tree
    )


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y in full precision; by default GPUs and TPUs round the factors to ten bits or so."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def total(tree: Grads) -> jax.Array:
    """Σ x over the tree, each leaf reduced where it lies."""
    return jax.tree.reduce(operator.add, jax.tree.map(jnp.sum, tree), jnp.zeros((), jnp.float32))


def _rescaled(tree: Grads) -> tuple[jax.Array, Grads]:
    """m and x/m with m = max |x| over the tree; m is 1 for a tree of zeros, NaN if there is one."""
    tree = widened(tree)
    leaves = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
    largest = functools.reduce(jnp.maximum, leaves, jnp.zeros((), jnp.float32))
    largest = jnp.where(largest == 0, 1, largest)
    return largest, jax.tree.map(lambda x: x / largest, tree)


def norm(tree: Grads) -> jax.Array:
    """‖x‖₂ over the whole tree."""
    largest, x = _rescaled(tree)
    return largest * jnp.sqrt(inner(x, x))


def unit(tree: Grads, ord: Scalar = 2) -> Grads:
    """∇‖x‖ₚ = sign(x)|x|^{p−1} / ‖x‖ₚ^{p−1}: for p = 2 the unit vector x/‖x‖. Zero at zero."""
    _, x = _rescaled(tree)
    power_sum = total(jax.tree.map(lambda x: jnp.abs(x) ** ord, x))
    # Some |x| is one, so the sum is at least one, unless all are zero.
    size = jnp.maximum(power_sum, 1) ** ((ord - 1) / ord)
    return jax.tree.map(lambda x: jnp.sign(x) * jnp.abs(x) ** (ord - 1) / size, x)


def _scaled_unit(tree: Grads, length: float | jax.Array) -> Grads:
    """ρ x/‖x‖ by a single factor, so that x/‖x‖ need not be stored. Zero at zero."""
    _, x = _rescaled(tree)
    root = jnp.sqrt(inner(x, x))
    factor = length / jnp.where(root == 0, 1, root)
    return jax.tree.map(lambda x: factor * x, x)


def mix(*terms: tuple[float | jax.Array, Grads]) -> Grads:
    """Σ wᵢ xᵢ over (weight, tree) pairs, in at least float32."""
    weights, trees = zip(*terms, strict=True)
    return jax.tree.map(
        lambda *xs: functools.reduce(
            operator.add, (w * widened(x) for w, x in zip(weights, xs, strict=True))
        ),
        *trees,
    )


def shift(
    params: Params, uphill: Grads, length: float | jax.Array, scale: Params | None = None
) -> Params:
    """θ + ρ T²u/‖Tu‖ in the parameters' dtypes; ``scale=None`` is T = 1."""
    if scale is None:
        step = _scaled_unit(uphill, length)
    else:
        times_scale = functools.partial(jax.tree.map, lambda t, x: widened(t) * widened(x), scale)
        step = times_scale(_scaled_unit(times_scale(uphill), length))
    return optax.tree.cast_like(mix((1, params), (1, step)), params)


def inner(x: Grads, y: Grads) -> jax.Array:
    """⟨x, y⟩ over the whole tree: sums of products, because a dot would flatten sharded leaves."""
    return total(jax.tree.map(lambda x, y: widened(x) * widened(y), x, y))


def named_leaves(tree: Params) -> dict[str, Any]:
    """Leaves by their paths, such as ``"params/Dense_0/kernel"``."""
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text, the same for an NNX Variable and for the array that it holds."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(function: Callable[..., Any], tree: Params, *trees: Params) -> Params:
    """``function(path, leaf, *leaves)`` over trees of one structure."""
    leaves = zip(named_leaves(tree).items(), *map(jax.tree.leaves, trees), strict=True)
    mapped = [function(path, x, *others) for (path, x), *others in leaves]
    return jax.tree.unflatten(jax.tree.structure(tree), mapped)
