"""Where the arrays of `train_distributed` live: processes, mesh, shardings, batches.

Nothing here communicates: arrays get a `NamedSharding`, and XLA inserts the collectives.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.lax import with_sharding_constraint as constrain
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.common.cli import UsageError
from flatreg.linen import TrainState

DATA = "data"  # the one mesh axis: batches lie along it, and parameters under FSDP


def connect(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Joins the processes of one job; a single process where no job is named or detected."""
    if jax.distributed.is_initialized() or processes == 1:
        return
    named = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    missing = [flag for flag, value in named.items() if value is None]
    if len(missing) == len(named):
        try:
            jax.distributed.initialize()  # TPU slice, Slurm, Open MPI or Kubernetes
        except ValueError as error:  # JAX's answer where it detects no cluster
            if "should be defined" not in str(error) and "must be defined" not in str(error):
                raise
        return
    if missing:
        raise UsageError(
            f"{', '.join(missing)} missing: several processes each need all three of --coordinator "
            "HOST:PORT, --processes N and --process-id I. Leave all three out for one process, and "
            "on a TPU slice or under Slurm, where JAX finds them itself."
        )
    if processes < 1 or not 0 <= process_id < processes:
        raise UsageError(
            f"--process-id {process_id} is out of range for --processes {processes}: number the "
            "processes from 0 to N - 1, each number once."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"--coordinator {coordinator!r} is no address: give HOST:PORT of process 0, such as "
            "127.0.0.1:9876, the same for all processes."
        )
    jax.distributed.initialize(coordinator, processes, process_id)


def make_mesh(axes: str, devices: int | None = None) -> Mesh:
    """The devices in one row: all of all processes, or the first few."""
    axis_type = AxisType.Explicit if axes == "explicit" else AxisType.Auto
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(axis_type,), devices=chosen)


def describe(mesh: Mesh) -> str:
    """The devices in words."""
    kind, processes = mesh.devices.flat[0].device_kind, jax.process_count()
    devices = f"{mesh.size} {kind} device{'s' * (mesh.size > 1)}"
    return devices + (f" of {processes} processes" if processes > 1 else "")


def shardings_of(state: TrainState, layout: str, mesh: Mesh) -> TrainState:
    """The shardings of a training state, which is given as shapes.

    Under `fsdp` each parameter, and what the optimizer keeps for it, is cut along its largest axis
    that the devices divide; what has none, and all of the rest, is whole on every device.
    """
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    if layout == "data":
        return shardings

    def cut(x: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, _cut(x, mesh))

    return shardings.replace(
        params=jax.tree.map(cut, state.params), opt_state=jax.tree.map(cut, state.opt_state)
    )


def on_mesh(apply: Callable[..., Any], layout: str, mesh: Mesh) -> Callable[..., Any]:
    """`apply` of a model, in the form in which a `TrainState` calls it.

    Under `fsdp` the parameters are gathered for each pass, and the gradient is cut up again. Under
    Explicit axes the network alone runs in `jax.sharding.auto_axes`, because Flax's layers do not
    name their shardings; the method and the optimizer see typed ones.
    """

    def forward(variables: Any, x: jax.Array, rngs: Any, **kwargs: Any) -> Any:
        if layout == "fsdp":
            # Differentiated from the bottom up: the gradient of the whole goes into the parts.
            parts = jax.tree.map(lambda w: constrain(w, _cut(w, mesh)), variables["params"])
            whole = jax.tree.map(lambda w: constrain(w, P()), parts)
            variables = {**variables, "params": whole}
        return apply(variables, x, rngs=rngs, **kwargs)

    def placed(variables: Any, x: jax.Array, rngs: Any = None, **kwargs: Any) -> Any:
        run = functools.partial(forward, **kwargs)
        if AxisType.Explicit in mesh.axis_types:
            batch = P(jax.typeof(x).sharding.spec[0])  # None inside of a vmap over shards
            run = jax.sharding.auto_axes(run, out_sharding=(batch, P()))
        return run(variables, x, rngs)

    return placed


def _cut(x: Any, mesh: Mesh) -> P:
    sizes = [size if size % mesh.size == 0 else 0 for size in x.shape]
    if not any(sizes):
        return P()
    axis = sizes.index(max(sizes))
    return P(*[None] * axis, DATA)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """The arrays gathered to every device, as NumPy arrays."""
    gather = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    return jax.tree.map(np.asarray, gather(tree))


class Batches:
    """Global batches of a data set, of which each process makes its own devices' examples.

    The order is a pure function of the seed and the step, so that a restored run goes on exactly.
    """

    def __init__(self, arrays: tuple[np.ndarray, ...], batch_size: int, seed: int, mesh: Mesh):
        self._arrays, self._size, self._seed, self._mesh = arrays, batch_size, seed, mesh
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, step: int) -> tuple[jax.Array, ...]:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, len(self._arrays[0]) // self._size)
        rows = self._permutation(epoch)[position * self._size : (position + 1) * self._size]
        return tuple(globally(x, rows, self._mesh) for x in self._arrays)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._arrays[0]))


def globally(x: np.ndarray, rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """`x[rows]` as one array over all devices, of which this process reads its own part."""
    sharding = NamedSharding(mesh, P(DATA))
    parts = sharding.addressable_devices_indices_map((len(rows),)).values()
    mine = sorted({i for (part,) in parts for i in range(len(rows))[part]})
    shape = (len(rows), *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x[rows[mine]], shape)


@contextlib.contextmanager
def progress(console: Console, first: int, steps: int) -> Iterator[Callable[[int, float], None]]:
    """Yields `show(step, loss)`: a live bar in a terminal, ten lines elsewhere."""
    columns = (
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=steps, completed=first)

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"loss {loss:.4f}")
            if not console.is_terminal and step % max(1, steps // 10) == 0:
                console.print(f"step {step} of {steps}: loss {loss:.4f}")

        yield show
