"""How a batch falls into parts: microbatches one after another, shards side by side.

The parts of a call's arguments are a tree with a leading axis, one entry a part, and ``args_of``
puts one part back among the arguments: its examples, and its keys ``fold_in(key, i)``.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import mix
from flatreg.typing import GradFn, Grads, Params

Args: TypeAlias = tuple[Any, ...]
ArgsOf: TypeAlias = Callable[[Any], Args]
ValueAndAux: TypeAlias = tuple[jax.Array, Any]
Evaluate: TypeAlias = Callable[[Params, Args], tuple[ValueAndAux, Grads]]
"""(params, args) ↦ (value, aux), ∇L: one pass."""


class Roles(NamedTuple):
    """Which of ``args`` are batches and which are keys, counted from 0."""

    batches: tuple[int, ...]
    keys: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)  # so that jax.jit can hash it
class ShardedGradFn:
    """The oracle over m shards of a batch, which also knows each shard's gradient and oracle.

    Attributes:
      shards: what tells the shards apart, a tree with a leading axis m.
      grads: the gradient on each shard, with a leading axis m.
      on_shard: the oracle on one of ``shards``.
    """

    shards: Any
    grads: Grads
    on_shard: Callable[[Any], GradFn]

    def __call__(self, params: Params) -> Grads:
        """∇L(params), the mean over the shards."""
        return mean_of(jax.vmap(lambda shard: self.on_shard(shard)(params))(self.shards))


def interleaved(x: jax.Array, count: int) -> jax.Array:
    """Part i holds the examples i, i + count, …: a part of every device's block."""
    return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)


def contiguous(x: jax.Array, count: int) -> jax.Array:
    """Part i holds the i-th block: device i's, if there are as many devices."""
    return x.reshape(count, -1, *x.shape[1:])


def split(
    roles: Roles, args: Args, count: int, layout: Callable[[jax.Array, int], jax.Array]
) -> tuple[Any, ArgsOf]:
    """The parts of the arguments, and how one part is put back among them."""
    batches = [
        jax.tree.map(lambda x: layout(jnp.asarray(x), count), args[i]) for i in roles.batches
    ]

    def args_of(part: tuple[list[Any], jax.Array]) -> Args:
        batches, index = part
        keys = [jax.random.fold_in(args[i], index) for i in roles.keys]
        return _replace(args, roles.batches + roles.keys, batches + keys)

    return (batches, _indices(jax.tree.leaves(batches)[0])), args_of


def take_first(roles: Roles, args: Args, count: int) -> Args:
    """The arguments with the first ``count`` examples only."""
    first = lambda x: jax.lax.slice_in_dim(x, 0, count)  # noqa: E731
    batches = [jax.tree.map(first, args[i]) for i in roles.batches]
    return _replace(args, roles.batches, batches)


def scan_parts(
    evaluate: Evaluate, params: Params, parts: Any, args_of: ArgsOf
) -> tuple[ValueAndAux, Grads]:
    """The mean over the parts, one after another, with the memory of one."""

    def add(total: Grads, part: Any) -> tuple[Grads, ValueAndAux]:
        out, grads = evaluate(params, args_of(part))
        return mix((1, total), (1, grads)), out

    count = len(jax.tree.leaves(parts)[0])
    total, outs = jax.lax.scan(add, mix((0, optax.tree.zeros_like(params))), parts)
    return _merge(outs), optax.tree.cast_like(mix((1 / count, total)), params)


def vmap_parts(
    evaluate: Evaluate, params: Params, parts: Any, args_of: ArgsOf
) -> tuple[ValueAndAux, Grads, ShardedGradFn]:
    """The mean over the parts, side by side, and the oracle that remembers them."""
    outs, grads = jax.vmap(lambda part: evaluate(params, args_of(part)))(parts)

    def on_shard(part: Any) -> GradFn:
        return lambda params: evaluate(params, args_of(part))[1]

    return _merge(outs), mean_of(grads), ShardedGradFn(parts, grads, on_shard)


def mean_of(stacked: Any) -> Any:
    """The mean over the leading axis of every leaf."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)


def count_examples(roles: Roles, args: Args, parts: int) -> int:
    """The size of the batch among the arguments, which ``parts`` parts share equally."""
    if max(roles.batches + roles.keys, default=-1) >= len(args):
        raise ValueError(
            f"batch_argnums and key_argnums name argument {max(roles.batches + roles.keys) + 1} of "
            f"the loss, but f(params, *args) was called with {len(args)} after params: pass the "
            "batch and the key by position, or change batch_argnums and key_argnums."
        )
    return leading_axis([args[i] for i in roles.batches], parts)


def leading_axis(batch: Any, parts: int = 1) -> int:
    """How many examples a batch has, which ``parts`` parts share equally."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "every leaf of the batch needs the examples as its leading axis, all the same number, "
            f"but the shapes are {shapes}: name the batch in batch_argnums, and pass what is no "
            "batch as another argument of the loss."
        )
    (examples,) = sizes
    if not examples or examples % parts:
        raise ValueError(
            f"{parts} microbatches or shards cannot share a batch of {examples} examples equally: "
            "choose a number that divides it, and drop or pad a ragged last batch."
        )
    return examples


def explicit_devices(roles: Roles, args: Args) -> int:
    """Over how many devices of an Explicit mesh the examples are sharded."""

    def devices(x: jax.Array) -> int:
        sharding = jax.typeof(x).sharding
        axes = sharding.spec[0] if sharding.spec else None
        names = axes if isinstance(axes, tuple) else (axes,)
        return math.prod(sharding.mesh.shape[name] for name in names if name is not None)

    return math.lcm(*[devices(x) for i in roles.batches for x in jax.tree.leaves(args[i])])


def _indices(parts: jax.Array) -> jax.Array:
    """0, 1, …, one a part, laid over the devices as the parts are."""
    sharding = jax.typeof(parts).sharding
    return jnp.arange(len(parts), out_sharding=sharding.update(spec=sharding.spec[:1]))


def _merge(outs: Any) -> Any:
    """The means of floating-point leaves, the last of all others."""

    def merge(x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[-1]

    return jax.tree.map(merge, outs)


def _replace(args: Args, places: Sequence[int], values: Sequence[Any]) -> Args:
    new = dict(zip(places, values, strict=True))
    return tuple(new.get(i, arg) for i, arg in enumerate(args))
