"""An oracle with a function applied to its gradients."""

from collections.abc import Callable

import jax

from flatreg._core.batches import ShardedGradFn
from flatreg.typing import GradFn, Grads, Params


def transformed_oracle(
    grad_fn: GradFn,
    after: Callable[[Grads], Grads],
    before: Callable[[Params], Params] = lambda params: params,
) -> GradFn:
    """Return the oracle ``params -> after(grad_fn(before(params)))``.

    If ``grad_fn`` is an oracle over shards, so is the result, and the functions are applied on each
    shard.

    Args:
      grad_fn: the oracle.
      after: applied to each gradient that the oracle returns.
      before: applied to the parameters before the oracle is called; the identity by default.

    Returns:
      The transformed oracle.
    """
    if isinstance(grad_fn, ShardedGradFn):
        return ShardedGradFn(
            shards=grad_fn.shards,
            grads=jax.vmap(after)(grad_fn.grads),
            on_shard=lambda shard: transformed_oracle(grad_fn.on_shard(shard), after, before),
        )
    return lambda params: after(grad_fn(before(params)))
