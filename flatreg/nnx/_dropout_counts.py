"""The dropout counts and dropout keys of an NNX model during a train step.

A dropout layer, like any other user of ``nnx.Rngs``, holds two Variables: an ``nnx.RngKey`` and an
``nnx.RngCount``. To draw a mask, it folds the count into the key and increases the count by one. A
train step follows three rules:

1. Every pass of a step starts from the same keys and the same counts, so all passes have the same
   masks. Each pass runs on its own copy of the model, so only the counts of the copy increase.
2. Each microbatch or shard folds the index of its first example into every key, and each device of
   ``pmap`` or ``shard_map`` the index of the device, so that the parts of a batch have different
   masks.
3. After the step, the counts of the model are those after the clean pass. This also holds if the
   step is skipped, so that the next step draws new masks. The keys of the model do not change.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.devices import AxisName
from flatreg.nnx._variables import Changes, with_changes


def fold_in_part(
    rng_state: Any, example_numbers: jax.Array | None, axis_name: AxisName | None
) -> Any:
    """Fold the index of a part's first example and the index of the device into every random key.

    Args:
      rng_state: the ``nnx.RngState`` Variables of the model. The keys may be stacked, for example
        by ``nnx.split_rngs``.
      example_numbers: the indices of the examples in this microbatch or shard, or None if the batch
        is not divided.
      axis_name: the axis of ``pmap`` or ``shard_map`` over which the batch is divided, or None.

    Returns:
      The Variables with new keys and the same counts, unchanged if the batch is not divided.
    """
    if example_numbers is not None:
        rng_state = _fold_in(rng_state, example_numbers[0])
    if axis_name is not None:
        rng_state = _fold_in(rng_state, jax.lax.axis_index(axis_name))
    return rng_state


def _fold_in(rng_state: Any, number: jax.Array) -> Any:
    fold_in = jnp.vectorize(jax.random.fold_in)

    def fold(x: jax.Array) -> jax.Array:
        return fold_in(x, number) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(fold, rng_state)


def advance_counts(rng_state: Any, changes: Changes) -> Any:
    """Return the random state of the model after a step, whether or not it was skipped.

    Args:
      rng_state: the ``nnx.RngState`` Variables before the step.
      changes: what the clean pass changed in them.

    Returns:
      The Variables with the counts of the clean pass.
    """
    return with_changes(rng_state, changes, keep=True)
