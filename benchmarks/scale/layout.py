"""Where the arrays of a training step are: replicated, or sharded over all chips.

`data`: every chip has all parameters and a part of the batch (data parallelism).
`fsdp`: every chip also has only a part of each parameter, of its gradient and of its moments
(fully sharded data parallelism). Each layer gathers its parameters when it needs them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import with_sharding_constraint as constrain
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"  # the only axis of the mesh
LAYOUTS = ("data", "fsdp")
# Names in the path of an array that has one more leading axis: over the layers of a transformer,
# and over the directions that `flatreg.revisit` remembers.
STACKS = ("layers", "directions")


class Layout:
    """The placement of arrays on a mesh.

    Args:
      name: `data` or `fsdp`.
      mesh: the chips.
    """

    def __init__(self, name: str, mesh: Mesh):
        self.name, self.mesh = name, mesh

    def of_batch(self) -> NamedSharding:
        """The sharding of inputs, labels and activations: by example."""
        return NamedSharding(self.mesh, P(DATA))

    def of_state(self, state: Any) -> Any:
        """The shardings of a training state, whose leaves are sharded as the parameters are."""

        def sharding(path: Any, x: Any) -> NamedSharding:
            stacked = sum(name in jax.tree_util.keystr(path) for name in STACKS)
            return NamedSharding(self.mesh, self._spec(x.shape, stacked))

        return jax.tree_util.tree_map_with_path(sharding, state)

    def gather(self, params: Any) -> Any:
        """Casts parameters to bfloat16 and gathers them. Their gradient is sharded again.

        The cast comes first, which halves what is communicated. The gradients of all chips are
        therefore summed in bfloat16, too.
        """
        if self.name == "data":
            return params

        def gathered(w: jax.Array) -> jax.Array:
            shards = constrain(w, NamedSharding(self.mesh, self._spec(w.shape)))
            return constrain(shards.astype(jnp.bfloat16), NamedSharding(self.mesh, P()))

        return jax.tree.map(gathered, params)

    def place(self, x: jax.Array) -> jax.Array:
        """Shards activations by example."""
        return constrain(x, self.of_batch())

    def _spec(self, shape: tuple[int, ...], stacked: int = 0) -> P:
        """Shards the largest axis that the chips divide, after the first `stacked` axes.

        Arrays with one such axis, for example biases, are replicated.
        """
        axes = shape[stacked:]
        sizes = [size if size % self.mesh.size == 0 else 0 for size in axes]
        if self.name == "data" or len(axes) < 2 or not any(sizes):
            return P()
        axis = stacked + sizes.index(max(sizes))
        return P(*[None] * axis, DATA)
