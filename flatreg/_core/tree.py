"""Norms, inner products and shifts of whole trees, without overflow or division by zero.

This module adds what ``optax.tree`` does not have. Every norm runs over the whole tree, in at least
float32, after dividing by the largest entry. Gradients of size 1e-23 or 3e20 therefore have a
direction, and the direction of a zero gradient is zero. A single NaN or Inf makes the whole
direction NaN, so that it does not go unnoticed.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from flatreg.typing import Grads, Params, Scalar


def widened(tree: Params) -> Params:
    """The tree or array with every leaf in at least float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(jnp.result_type(x))), tree)


def wide_dtype(dtype: Any) -> Any:
    """The dtype, or float32 if it is narrower, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def bits_of(dtype: Any) -> int:
    """The number of bits of an integer or a real floating-point number."""
    info: Any = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return int(info(dtype).bits)


P = ParamSpec("P")
T = TypeVar("T")


def with_standard_promotion(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function ignore the settings of JAX for strict promotion of dtypes and ranks.

    These settings find mistakes in the code of the user. Functions that do not call it, or that
    only interpret its program, may ignore them.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def new_if_finite(new: Grads, old: Grads) -> Grads:
    """The new entries where they are finite and the old ones elsewhere, in the old dtypes."""
    return jax.tree.map(lambda x, y: jnp.where(jnp.isfinite(x), x, y).astype(y.dtype), new, old)


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y in full precision. By default, GPUs and TPUs round the factors to about ten bits."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def total(tree: Grads) -> jax.Array:
    """The sum of all entries of the tree. Each leaf is reduced on the devices that hold it."""
    return _reduced(jnp.sum, jnp.add, tree)


@with_standard_promotion
def _reduced(
    reduce: Callable[[jax.Array], jax.Array], pairwise: Callable[[Any, Any], Any], tree: Grads
) -> jax.Array:
    """The sum or the maximum of zero and all entries of the tree, computed once.

    XLA copies a chain of scalar operations, and a reduction that it can turn into one, into every
    kernel that uses the result. With one scalar per leaf and one kernel per leaf, the program then
    grows with the square of the number of leaves. The barrier prevents this.

    On an Explicit mesh it is a chain all the same: inside ``vmap``, the scalars may have different
    shardings there, which ``jnp.stack`` rejects.
    """
    zero = jnp.zeros((), jnp.float32)
    scalars = [zero, *map(reduce, _entrywise(pairwise, jax.tree.leaves(tree)))]
    meshes = [jax.typeof(x).sharding.mesh for x in scalars]
    if any(AxisType.Explicit in (mesh.axis_types or ()) for mesh in meshes):
        return functools.reduce(pairwise, scalars)
    return reduce(jax.lax.optimization_barrier(jnp.stack(scalars)))


def _entrywise(pairwise: Callable[[Any, Any], Any], leaves: Sequence[Any]) -> list[jax.Array]:
    """The leaves, those of one shape combined entry by entry unless they are on a mesh of devices.

    XLA compiles kernels for every reduction, and the many leaves of a deep network have few shapes.
    A mesh may hold leaves of one shape in different layouts. To combine those, it would have to
    move them.
    """
    groups: dict[Any, list[jax.Array]] = {}
    for i, x in enumerate(map(jnp.asarray, leaves)):
        kind = jax.typeof(x)
        groups.setdefault(kind if kind.sharding.mesh.size <= 1 else i, []).append(x)
    return [functools.reduce(pairwise, group) for group in groups.values()]


def _rescaled(tree: Grads) -> tuple[jax.Array, Grads]:
    """m and x/m with m = max |x| over the tree. m is 1 for a tree of zeros, and a NaN stays NaN."""
    tree = widened(tree)
    maximum = functools.partial(jnp.max, initial=0)
    largest = _reduced(maximum, jnp.maximum, jax.tree.map(jnp.abs, tree))
    largest = jnp.where(largest == 0, 1, largest)
    return largest, jax.tree.map(lambda x: x / largest, tree)


def norm(tree: Grads) -> jax.Array:
    """‖x‖₂ over the whole tree."""
    largest, x = _rescaled(tree)
    return largest * jnp.sqrt(inner(x, x))


def scaled(scale: Params | None, tree: Grads) -> Grads:
    """T x, with the factors T = ``scale`` per weight or per leaf; x itself for ``scale=None``."""
    if scale is None:
        return tree
    return jax.tree.map(lambda t, x: widened(t) * widened(x), scale, tree)


def unit(tree: Grads, ord: Scalar = 2) -> Grads:
    """∇‖x‖ₚ = sign(x)|x|^{p−1} / ‖x‖ₚ^{p−1}. For p = 2 it is the unit vector x/‖x‖. Zero at 0."""
    _, x = _rescaled(tree)
    power_sum = total(jax.tree.map(lambda x: jnp.abs(x) ** ord, x))
    # The largest |x| is one, so the sum is at least one unless all entries are zero.
    size = jnp.maximum(power_sum, 1) ** ((ord - 1) / ord)
    return jax.tree.map(lambda x: jnp.sign(x) * jnp.abs(x) ** (ord - 1) / size, x)


def norm_gradient(g: Grads, ord: Scalar = 2, scale: Params | None = None) -> Grads:
    """∂‖Tg‖ₚ/∂g = T sign(Tg)|Tg|^{p−1} / ‖Tg‖ₚ^{p−1}. For p = 2 it is T²g/‖Tg‖. Zero at 0."""
    return scaled(scale, unit(scaled(scale, g), ord))


def _scaled_unit(tree: Grads, length: float | jax.Array) -> Grads:
    """ρ x/‖x‖ with a single factor, so that x/‖x‖ is never stored. Zero at zero."""
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


def ascent(uphill: Grads, length: float | jax.Array, scale: Params | None = None) -> Grads:
    """ρ T²u/‖Tu‖ in at least float32; ``scale=None`` means T = 1. Zero at zero."""
    return scaled(scale, _scaled_unit(scaled(scale, uphill), length))


def shift(
    params: Params, uphill: Grads, length: float | jax.Array, scale: Params | None = None
) -> Params:
    """θ + ρ T²u/‖Tu‖ in the parameters' dtypes; ``scale=None`` means T = 1."""
    step = ascent(uphill, length, scale)
    return optax.tree.cast_like(mix((1, params), (1, step)), params)


def computed_once(grads: Grads) -> Grads:
    """The gradient, each leaf of which XLA completes before anything uses it.

    A method may use a gradient both for the point of the next pass and after that pass. With
    sharded parameters, XLA would keep what the gradient is computed from in the meantime: the sum
    over all devices of a whole leaf, of which a device needs only its shard. Leaves that are not
    arrays stay as they are, for the errors of the methods.
    """

    def complete(x: Any) -> Any:
        return jax.lax.optimization_barrier(x) if isinstance(x, jax.Array) else x

    return jax.tree.map(complete, grads)


def wide_zeros(params: Params) -> Params:
    """A tree of zeros like the parameters, in at least float32. It reads only shapes and dtypes."""
    return jax.tree.map(lambda w: jnp.zeros_like(w, wide_dtype(jnp.result_type(w))), params)


def inner(x: Grads, y: Grads) -> jax.Array:
    """⟨x, y⟩ over the whole tree. It sums products, because vdot would flatten sharded leaves."""
    return total(jax.tree.map(lambda x, y: widened(x) * widened(y), x, y))


def named_leaves(tree: Params) -> dict[str, Any]:
    """A dictionary from paths, such as ``"params/Dense_0/kernel"``, to leaves."""
    leaves: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if name in leaves:
            raise ValueError(
                f"two leaves have the path {name!r}, because one of their keys contains '/': "
                "rename that key, for example to "
                f"{name.replace('/', '_')!r}."
            )
        leaves[name] = x
    return leaves


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text. An NNX ``Variable`` and the array inside it have the same path."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_bias_or_scale(path: str) -> bool:
    """Whether a leaf is a bias or the scale of a normalization layer, according to its name."""
    return path.rpartition("/")[2] in ("bias", "b", "scale", "offset", "beta", "gamma")


def map_named(function: Callable[..., Any], tree: Params, *trees: Params) -> Params:
    """Maps ``function(path, leaf, *leaves)`` over trees with the same structure."""
    leaves = zip(named_leaves(tree).items(), *map(jax.tree.leaves, trees), strict=True)
    mapped = [function(path, x, *others) for (path, x), *others in leaves]
    return jax.tree.unflatten(jax.tree.structure(tree), mapped)
