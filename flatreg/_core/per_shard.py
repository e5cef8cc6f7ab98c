"""m-sharpness: a method applied to each shard of the batch."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.batches import ShardedGradFn, mean_of
from flatreg._core.checks import checked_method
from flatreg.typing import Grads

Method: TypeAlias = optax.GradientTransformationExtraArgs


def per_shard(method: Method) -> Method:
    r"""m-sharpness: the mean over m shards of the batch of each shard's own direction.

    d = (1/m) Σᵢ dᵢ, where dᵢ is the method's direction for the loss on shard i. For SAM that is
    (1/m) Σᵢ ∇Lᵢ(θ + ρ ∇Lᵢ/‖∇Lᵢ‖). The shards are evaluated side by side (``vmap``): with as many
    shards as devices along a sharded batch, each device perturbs by its own gradient. The shards'
    gradients come with the oracle, so what stands before it in a chain changes nothing.

    All shards see one state, and one key for :func:`randomly`. Of the states that they return,
    floating-point leaves are averaged; of the others, such as counts, the largest is kept.

    Args:
      method: the transformation to apply to each shard.

    Returns:
      A transformation that costs what ``method`` does, in the memory of m copies of the
      perturbed parameters (one a device when sharded). It needs the ``grad_fn`` of
      ``value_and_grad_fn(loss_fn, shards=m)``.

    Raises:
      TypeError: if ``grad_fn`` does not come from ``value_and_grad_fn(..., shards=m)``.

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
        updates: Grads,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Any = None,
        **extra: Any,
    ) -> tuple[Grads, Any]:
        if not isinstance(grad_fn, ShardedGradFn):
            raise TypeError(
                "per_shard needs the gradient oracle of each shard: write loss, grads, grad_fn = "
                "flatreg.value_and_grad_fn(loss_fn, shards=m)(params, batch) and hand this "
                f"grad_fn to tx.update; got {grad_fn!r}."
            )

        def on_shard(shard: Any, g: Grads) -> tuple[Grads, Any]:
            return method.update(g, state, params, grad_fn=grad_fn.on_shard(shard), **extra)

        directions, states = jax.vmap(on_shard)(grad_fn.shards, grad_fn.grads)
        return mean_of(directions), jax.tree.map(_one, states)

    return Method(method.init, update)


def _one(stacked: jax.Array) -> jax.Array:
    """One value for all shards, bitwise theirs where they agree."""
    if jnp.issubdtype(stacked.dtype, jax.dtypes.prng_key):
        data = _one(jax.random.key_data(stacked))
        key: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(stacked))
        return key
    largest = jnp.max(stacked, axis=0)
    if jnp.issubdtype(stacked.dtype, jnp.floating):
        return largest + jnp.mean(stacked - largest, axis=0)
    return largest
