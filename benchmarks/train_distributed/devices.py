"""Where the arrays of a distributed run are: processes, mesh and shardings.

Nothing here communicates: arrays get a `NamedSharding`, and XLA inserts the collectives.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.lax import with_sharding_constraint as constrain
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.common.cli import UsageError
from flatreg.linen import TrainState

DATA = "data"  # the only axis of the mesh, which shards batches and, under FSDP, parameters


def connect(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Joins the processes of one job.

    Does nothing for a single process: if all arguments are None and JAX detects no cluster.

    Args:
      coordinator: HOST:PORT of process 0, or None.
      processes: the number of processes, or None.
      process_id: the number of this process, or None.

    Raises:
      UsageError: if the arguments are incomplete or wrong.
    """
    if jax.distributed.is_initialized() or processes == 1:
        return
    named = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    missing = [flag for flag, value in named.items() if value is None]
    if len(missing) == len(named):
        try:
            jax.distributed.initialize()  # TPU slice, Slurm, Open MPI or Kubernetes
        except ValueError as error:  # what JAX raises if it detects no cluster
            if "should be defined" not in str(error) and "must be defined" not in str(error):
                raise
        return
    if missing:
        raise UsageError(
            f"{', '.join(missing)} missing: with several processes, each needs --coordinator "
            "HOST:PORT, --processes N and --process-id I. Leave out all three for one process, and "
            "on a TPU slice or under Slurm, where JAX finds the processes."
        )
    assert coordinator is not None
    assert processes is not None
    assert process_id is not None
    if processes < 1 or not 0 <= process_id < processes:
        raise UsageError(
            f"--process-id {process_id} is out of range for --processes {processes}: number the N "
            "processes from 0 to N - 1, and use each number once."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"--coordinator {coordinator!r} is not an address: give HOST:PORT of process 0, such "
            "as 127.0.0.1:9876, the same for all processes."
        )
    jax.distributed.initialize(coordinator, processes, process_id)


def make_mesh(axes: str, devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis.

    Args:
      axes: `auto` or `explicit`, the type of the axis.
      devices: the number of devices, or None for all devices of all processes.
    """
    axis_type = AxisType.Explicit if axes == "explicit" else AxisType.Auto
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(axis_type,), devices=chosen)


def describe(mesh: Mesh) -> str:
    """Returns a description of the devices."""
    kind, processes = mesh.devices.flat[0].device_kind, jax.process_count()
    devices = f"{mesh.size} {kind} device{'s' * (mesh.size > 1)}"
    return devices + (f" of {processes} processes" if processes > 1 else "")


def shardings_of(state: TrainState, layout: str, mesh: Mesh) -> TrainState:
    """Returns the shardings of a training state.

    Under `fsdp`, each parameter and each array of the optimizer's state is sharded along the
    largest axis that the number of devices divides. Arrays without such an axis, and all other
    arrays, are replicated on every device.

    Args:
      state: the shapes of the training state.
      layout: `data` or `fsdp`.
      mesh: the devices.
    """
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    if layout == "data":
        return shardings

    def sharding(x: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, _spec(x, mesh))

    return shardings.replace(
        params=jax.tree.map(sharding, state.params),
        opt_state=jax.tree.map(sharding, state.opt_state),
    )


def on_mesh(apply: Callable[..., Any], layout: str, mesh: Mesh) -> Callable[..., Any]:
    """Returns the `apply` function of a model for a `TrainState` on a mesh.

    Under `fsdp`, the parameters are gathered for each pass, and their gradient is sharded again.
    With explicit axes, only the network runs in `jax.sharding.auto_axes`, because Flax's layers do
    not name their shardings; the method and the optimizer see arrays with typed shardings.

    Args:
      apply: the `apply` function of a Flax model.
      layout: `data` or `fsdp`.
      mesh: the devices.
    """

    def forward(variables: Any, x: jax.Array, rngs: Any, **kwargs: Any) -> Any:
        if layout == "fsdp":
            # Backpropagation goes through these two lines in reverse order: the gradient of the
            # gathered parameters becomes the gradient of the sharded ones.
            sharded = jax.tree.map(lambda w: constrain(w, _spec(w, mesh)), variables["params"])
            gathered = jax.tree.map(lambda w: constrain(w, P()), sharded)
            variables = {**variables, "params": gathered}
        return apply(variables, x, rngs=rngs, **kwargs)

    def placed(variables: Any, x: jax.Array, rngs: Any = None, **kwargs: Any) -> Any:
        run: Callable[..., Any] = functools.partial(forward, **kwargs)
        if AxisType.Explicit in mesh.axis_types:
            batch = P(jax.typeof(x).sharding.spec[0])  # None inside a vmap over shards
            run = jax.sharding.auto_axes(run, out_sharding=(batch, P()))
        return run(variables, x, rngs)

    return placed


def _spec(x: Any, mesh: Mesh) -> P:
    """Shards the largest axis that the number of devices divides, if there is one."""
    sizes = [size if size % mesh.size == 0 else 0 for size in x.shape]
    if not any(sizes):
        return P()
    axis = sizes.index(max(sizes))
    return P(*[None] * axis, DATA)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Gathers the arrays to every device and returns them as NumPy arrays."""
    gather = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    return jax.tree.map(np.asarray, gather(tree))
