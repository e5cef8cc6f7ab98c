"""Global batches of a data set, which Grain reads. Each process reads its own part only."""

from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.train_distributed.devices import DATA

AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)  # batches read in advance


class Batches:
    """An infinite iterator over the global batches of a data set, whose position can be saved.

    Grain shuffles the examples of each epoch anew, with a seed that comes from `seed` and the epoch
    only. The last examples of an epoch that are fewer than a batch are left out.

    Grain shuffles and batches the row numbers, and every process then reads the rows of its own
    devices. Batches therefore do not depend on the number of processes, and a run may resume on
    another number of them.

    Args:
      arrays: arrays with the examples along their first axis, such as inputs and labels.
      batch_size: the number of examples per batch.
      seed: the seed of the order.
      mesh: the devices.
    """

    def __init__(self, arrays: tuple[np.ndarray, ...], batch_size: int, seed: int, mesh: Mesh):
        self._mesh = mesh
        mine = _own_rows(batch_size, mesh)
        rows = grain.MapDataset.range(len(arrays[0])).seed(seed).shuffle()
        batches = rows.batch(batch_size, drop_remainder=True).repeat()
        read = batches.map(lambda rows: tuple(x[rows[mine]] for x in arrays))
        self._size, self._iterator = batch_size, iter(read.to_iter_dataset(AHEAD))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[jax.Array, ...]:
        """Returns the next batch, as arrays over all devices."""
        return tuple(_on_devices(x, self._size, self._mesh) for x in next(self._iterator))

    def get_state(self) -> dict[str, Any]:
        """Returns the position, which can be written as JSON and is the same in all processes."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that `get_state` returned."""
        self._iterator.set_state(state)


def globally(x: np.ndarray, rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Returns `x[rows]` as one array over all devices.

    This process reads the rows of its own devices only.
    """
    return _on_devices(x[rows[_own_rows(len(rows), mesh)]], len(rows), mesh)


def _own_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Returns which of the `count` rows of an array are on devices of this process."""
    parts: Any = NamedSharding(mesh, P(DATA)).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[part] for (part,) in parts]))


def _on_devices(own: np.ndarray, count: int, mesh: Mesh) -> jax.Array:
    """Returns the global array of `count` rows, of which this process has its own."""
    sharding = NamedSharding(mesh, P(DATA))
    return jax.make_array_from_process_local_data(sharding, own, (count, *own.shape[1:]))
