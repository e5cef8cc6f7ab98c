"""m-sharpness: applies a method to each shard of the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.batches import Part, ShardedGradFn, mean_of
from flatreg._core.checks import checked_method
from flatreg.typing import Grads, Method


def per_shard(method: Method) -> Method:
    r"""m-sharpness: applies a method to each of m shards of the batch and averages the directions.

    The direction is d = (1/m) Σᵢ dᵢ, where dᵢ is the method's direction for the loss Lᵢ on shard i.
    For SAM this is (1/m) Σᵢ ∇Lᵢ(θ + ρ ∇Lᵢ/‖∇Lᵢ‖). The shards are evaluated in parallel (``vmap``).
    If the batch is sharded over as many devices as there are shards, each device perturbs with its
    own gradient. The gradients of the shards come from the oracle, so earlier links of the chain
    do not change the result.

    All shards start from the same state, and :func:`randomly` uses the same key on all of them. The
    new states of the shards are merged: floating-point leaves are averaged, and for all other
    leaves, such as counts, the largest value is kept.

    Args:
      method: the method to apply to each shard.

    Returns:
      A transformation that costs as much as ``method``. Its ``update`` needs the ``grad_fn`` that
      ``value_and_grad_fn(loss_fn, shards=m)`` returns. It needs memory for m copies of the
      perturbed parameters (one per device if the batch is sharded).

    Raises:
      TypeError: if ``method`` is not a transformation; in ``update``, if ``grad_fn`` does not come
        from ``value_and_grad_fn(..., shards=m)``.

    Examples:
      >>> import jax.numpy as jnp, flatreg
      >>> loss_fn = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> w, x = jnp.ones(2), jnp.diag(jnp.array([1.0, 2.0]))
      >>> loss, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, shards=2)(w, x)
      >>> tx = flatreg.per_shard(flatreg.sam(1.0))
      >>> d, _ = tx.update(g, tx.init(w), w, grad_fn=grad_fn)
      >>> print(g, d)
      [1. 4.] [2. 8.]

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021, section 4.1.
    """
    method = checked_method("per_shard", method)

    def update(
        updates: Grads, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> tuple[Grads, Any]:
        if not isinstance(grad_fn, ShardedGradFn):
            raise TypeError(
                "per_shard needs the gradient oracle of each shard: write loss, grads, grad_fn = "
                "flatreg.value_and_grad_fn(loss_fn, shards=m)(params, batch) and pass this "
                f"grad_fn to tx.update. Got {grad_fn!r}."
            )

        def on_shard(shard: Part, g: Grads) -> tuple[Grads, Any]:
            return method.update(g, state, params, grad_fn=grad_fn.on_shard(shard), **extra)

        directions, states = jax.vmap(on_shard)(grad_fn.shards, grad_fn.grads)
        return mean_of(directions), jax.tree.map(_merge, states)

    return Method(method.init, update)


def _merge(stacked: jax.Array) -> jax.Array:
    """Merges the values of all shards. If they are equal, the result is bitwise equal to them."""
    if jnp.issubdtype(stacked.dtype, jax.dtypes.prng_key):
        data = _merge(jax.random.key_data(stacked))
        key: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(stacked))
        return key
    largest = jnp.max(stacked, axis=0)
    if jnp.issubdtype(stacked.dtype, jnp.floating):
        return largest + jnp.mean(stacked - largest, axis=0)
    return largest
