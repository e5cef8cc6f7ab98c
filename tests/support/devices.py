"""Runs a function in ``pmap``, ``shard_map`` and ``vmap``, with the batch divided over devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

DEVICES = 8
SETTINGS = ["pmap", "shard_map", "shard_map_unchecked", "vmap"]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def on_devices(setting, function):
    """``function(params, batch)`` with the batch divided, and the outputs of every device."""

    def stacked(*args):
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*args))

    if setting in ("pmap", "vmap"):
        over = {"pmap": jax.pmap, "vmap": jax.vmap}[setting]
        mapped = over(function, axis_name="data", in_axes=(None, 0))
        mapped = mapped if setting == "pmap" else jax.jit(mapped)
        return lambda params, batch: mapped(params, stacked_parts(batch))
    return jax.jit(
        jax.shard_map(
            stacked,
            mesh=mesh(),
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            check_vma=setting == "shard_map",
        )
    )


def stacked_parts(batch):
    """The parts of the batch, one per device, stacked along a new leading axis."""
    return jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)


def assert_each_device_has(stacked, expected):
    def check(x, y):
        np.testing.assert_allclose(x, np.broadcast_to(y, np.shape(x)), **CLOSE)

    jax.tree.map(check, stacked, expected)
