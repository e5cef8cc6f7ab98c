"""Global batches of a data set, of which each process creates its own part."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.train_distributed.devices import DATA


class Batches:
    """Global batches of a data set.

    The order depends on the seed and on the step only, so that a resumed run sees the same batches
    as an uninterrupted one. Each process creates the examples of its own devices.

    Args:
      arrays: arrays with the examples along their first axis, such as inputs and labels.
      batch_size: the number of examples per batch.
      seed: the seed of the order.
      mesh: the devices.
    """

    def __init__(self, arrays: tuple[np.ndarray, ...], batch_size: int, seed: int, mesh: Mesh):
        self._arrays, self._size, self._seed, self._mesh = arrays, batch_size, seed, mesh
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, step: int) -> tuple[jax.Array, ...]:
        """Returns the batch of a step; steps count from 0."""
        epoch, position = divmod(step, len(self._arrays[0]) // self._size)
        rows = self._permutation(epoch)[position * self._size : (position + 1) * self._size]
        return tuple(globally(x, rows, self._mesh) for x in self._arrays)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns the order of the examples in an epoch."""
        return np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._arrays[0]))


def globally(x: np.ndarray, rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Returns `x[rows]` as one array over all devices.

    This process reads the rows of its own devices only.
    """
    sharding = NamedSharding(mesh, P(DATA))
    parts: Any = sharding.addressable_devices_indices_map((len(rows),)).values()
    mine = sorted({i for (part,) in parts for i in range(len(rows))[part]})
    shape = (len(rows), *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x[rows[mine]], shape)
