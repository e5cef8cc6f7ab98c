"""Splits a batch into microbatches, evaluated in sequence, or into shards, evaluated in parallel.

Both are called parts. One :class:`Part` stores all of them: its leaves have a leading axis with one
entry per part. The function ``args_of`` maps entry i to the arguments of the loss. In these, each
batch is replaced by the examples of part i, and each random key by ``fold_in(key, i)``.

``optax.microbatch`` takes the examples in the same order, but it is not used here:

* It sums in the dtype of the gradients. In bfloat16, the sum of many microbatches stops growing.
  :func:`scan_parts` sums in at least float32.
* It does not pass the number of the microbatch, which must be folded into random keys.
* It needs Optax 0.2.7, and with explicit axes JAX 0.8.1. flatreg supports older versions.

It would save nothing. These are four microbatches of 32 examples for an MLP 256-512-512-10, with
JAX 0.12 on a CPU (``python -m benchmarks.step_cost --alternatives``). Memory is the temporary
memory of the program, and time is the shortest CPU time:

==================  ============================  ============================
computation         flatreg                       ``optax.microbatch``
==================  ============================  ============================
gradient, float32   1.5 MB, 8.4 ms                1.5 MB, 8.1 ms
HVP, float32        10.8 MB, 20.8 ms              10.8 MB, 22.9 ms
gradient, bfloat16  2.7 MB, 8.9 ms, error 0.0044  1.7 MB, 9.5 ms, error 0.0055
HVP, bfloat16       7.7 MB, 25.6 ms               6.9 MB, 23.2 ms
==================  ============================  ============================

Compilation takes 1.1 to 3.6 s of CPU time here and 1.0 to 4.2 s with Optax.
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
ValueAndAux: TypeAlias = tuple[jax.Array, Any]
Evaluate: TypeAlias = Callable[[Params, Args], tuple[ValueAndAux, Grads]]
"""One pass: ``evaluate(params, args) -> (value, aux), ∇L``."""


class Roles(NamedTuple):
    """The positions of the batches and of the keys in ``args``, counted from 0."""

    batches: tuple[int, ...]
    keys: tuple[int, ...]


class Part(NamedTuple):
    """One microbatch or shard, or all of them stacked along a leading axis.

    Attributes:
      batches: the examples of the part, one tree per batch argument.
      number: the index i of the part, counted from 0, which is folded into its random keys.
    """

    batches: list[Any]
    number: jax.Array


class PerPart(NamedTuple):
    """A part of aux that belongs to one microbatch, shard or device, and is not averaged.

    Attributes:
      value: the tree of one part, or that of all parts with a leading axis.
    """

    value: Any


ArgsOf: TypeAlias = Callable[[Part], Args]


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False makes it hashable for jax.jit
class ShardedGradFn:
    """The gradient oracle of a batch that is split into m shards.

    It also provides the gradient and the gradient oracle of each shard.

    Attributes:
      shards: the examples and the number of each shard, with a leading axis m.
      grads: the gradient on each shard, a tree with a leading axis m.
      on_shard: a function from one entry of ``shards`` to the gradient oracle of that shard.
    """

    shards: Part
    grads: Grads
    on_shard: Callable[[Part], GradFn]

    def __call__(self, params: Params) -> Grads:
        """Returns ∇L(params), the mean of the gradients of all shards."""
        return mean_of(jax.vmap(lambda shard: self.on_shard(shard)(params))(self.shards))


def interleaved(x: jax.Array, count: int) -> jax.Array:
    """Part i has the examples i, i + count, …, so every part has examples from every device."""
    return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)


def contiguous(x: jax.Array, count: int) -> jax.Array:
    """Part i is the i-th block of examples. With ``count`` devices it is the block of device i."""
    return x.reshape(count, -1, *x.shape[1:])


def split(
    roles: Roles, args: Args, count: int, layout: Callable[[jax.Array, int], jax.Array]
) -> tuple[Part, ArgsOf]:
    """Returns the parts, and the function ``args_of`` from one part to the loss's arguments."""
    batches = [
        jax.tree.map(lambda x: layout(jnp.asarray(x), count), args[i]) for i in roles.batches
    ]

    def args_of(part: Part) -> Args:
        keys = [jax.random.fold_in(args[i], part.number) for i in roles.keys]
        return _replace(args, roles.batches + roles.keys, part.batches + keys)

    return Part(batches, _indices(jax.tree.leaves(batches)[0])), args_of


def take_first(roles: Roles, args: Args, count: int) -> Args:
    """Returns the arguments with only the first ``count`` examples of each batch."""
    first = lambda x: jax.lax.slice_in_dim(x, 0, count)  # noqa: E731
    batches = [jax.tree.map(first, args[i]) for i in roles.batches]
    return _replace(args, roles.batches, batches)


def scan_parts(
    evaluate: Evaluate, params: Params, parts: Part, args_of: ArgsOf
) -> tuple[ValueAndAux, Grads]:
    """Evaluates the parts in sequence, with the memory of one part, and returns the means."""

    def add(total: Grads, part: Part) -> tuple[Grads, ValueAndAux]:
        out, grads = evaluate(params, args_of(part))
        return mix((1, total), (1, grads)), out

    count = len(jax.tree.leaves(parts)[0])
    total, outs = jax.lax.scan(add, mix((0, optax.tree.zeros_like(params))), parts)
    return _merge(outs), optax.tree.cast_like(mix((1 / count, total)), params)


def vmap_parts(
    evaluate: Evaluate, params: Params, parts: Part, args_of: ArgsOf
) -> tuple[ValueAndAux, Grads, ShardedGradFn]:
    """Evaluates the parts in parallel, and returns the means and the oracle of all parts."""
    outs, grads = jax.vmap(lambda part: evaluate(params, args_of(part)))(parts)

    def on_shard(part: Part) -> GradFn:
        return lambda params: evaluate(params, args_of(part))[1]

    return _merge(outs), mean_of(grads), ShardedGradFn(parts, grads, on_shard)


def mean_of(stacked: Any) -> Any:
    """The mean over the leading axis of every leaf."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)


def count_examples(roles: Roles, args: Args, parts: int) -> int:
    """The number of examples in the batch arguments, after checking that ``parts`` divides it."""
    if max(roles.batches + roles.keys, default=-1) >= len(args):
        raise ValueError(
            f"batch_argnums and key_argnums name argument {max(roles.batches + roles.keys) + 1} of "
            f"the loss, but f(params, *args) was called with {len(args)} after params: pass the "
            "batch and the key as positional arguments, or change batch_argnums and key_argnums."
        )
    return leading_axis([args[i] for i in roles.batches], parts)


def leading_axis(batch: Any, parts: int = 1) -> int:
    """The number of examples in a batch, after checking that ``parts`` divides it."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "every leaf of the batch must have the examples along its leading axis, and all leaves "
            f"must have the same number of examples, but the shapes are {shapes}: name the batch "
            "in batch_argnums, and pass everything else as another argument of the loss. A random "
            "key is not an example: pass it as an argument of its own that key_argnums names, "
            "value_and_grad_fn(loss_fn, key_argnums=2)(params, batch, key)."
        )
    (examples,) = sizes
    if not examples or examples % parts:
        raise ValueError(
            f"a batch of {examples} examples cannot be split equally into {parts} microbatches or "
            "shards: choose a number that divides the batch size, and drop or pad an incomplete "
            "last batch."
        )
    return examples


def explicit_devices(roles: Roles, args: Args) -> int:
    """The number of devices over which an Explicit mesh shards the examples."""

    def devices(x: jax.Array) -> int:
        sharding = jax.typeof(x).sharding
        axes = sharding.spec[0] if sharding.spec else None
        names = axes if isinstance(axes, tuple) else (axes,)
        return math.prod(sharding.mesh.shape[name] for name in names if name is not None)

    return math.lcm(*[devices(x) for i in roles.batches for x in jax.tree.leaves(args[i])])


def _indices(parts: jax.Array) -> jax.Array:
    """The indices 0, 1, …, one per part, sharded in the same way as the parts."""
    sharding = jax.typeof(parts).sharding
    return jnp.arange(len(parts), out_sharding=sharding.update(spec=sharding.spec[:1]))


def _merge(outs: Any) -> Any:
    """Averages floating-point leaves over the parts. All other leaves come from the last part."""

    def merge(x: Any) -> Any:
        if isinstance(x, PerPart):
            return x
        return jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[-1]

    return jax.tree.map(merge, outs, is_leaf=lambda x: isinstance(x, PerPart))


def _replace(args: Args, positions: Sequence[int], values: Sequence[Any]) -> Args:
    """The arguments with new values at some positions."""
    new = dict(zip(positions, values, strict=True))
    return tuple(new.get(i, arg) for i, arg in enumerate(args))
