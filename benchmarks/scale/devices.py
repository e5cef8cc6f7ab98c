"""The devices that programs are compiled for: CPU devices of this machine, or TPUs that it lacks.

The TPU's compiler is the package `libtpu`. It compiles for any slice of a TPU on a machine without
one.
"""

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.common.cli import UsageError
from benchmarks.scale.layout import DATA

CPU = "cpu"
# The memory per chip that its compiler may use. A TPU v5e has 16 GiB, a part of which is reserved.
MEMORY = {"v5e": 15.75 * 2**30}
INSTALL = "Run pip install 'flatreg[tpu-compiler]'"


class Chips(NamedTuple):
    """The chips that a program is compiled for.

    Attributes:
      name: as the command line names them, for example `v5e:4x4`.
      mesh: a mesh with one axis.
      memory: the bytes per chip that a program may use; None for CPU devices.
    """

    name: str
    mesh: Mesh
    memory: float | None


def check(name: str) -> None:
    """Raises `UsageError` if the name of the devices is not valid."""
    if not re.fullmatch(r"cpu:[1-9]\d*|v\w+:\d+x\d+(x\d+)?", name):
        raise UsageError(
            f"--devices cannot take {name!r}. Give cpu:8 for eight CPU devices of this machine, or "
            "the topology of a TPU slice, such as v5e:4x4."
        )


def start(names: list[str]) -> None:
    """Makes this machine's CPU have as many devices as are named. Call it before JAX is used."""
    counts = [int(name.partition(":")[2]) for name in names if name.startswith(CPU)]
    with contextlib.suppress(RuntimeError):  # if JAX runs already
        jax.config.update("jax_num_cpu_devices", max(counts, default=1))
    if len(jax.devices(CPU)) < max(counts, default=1):
        raise UsageError(
            f"This process has {len(jax.devices(CPU))} CPU devices, fewer than --devices asks for. "
            f"Set the environment variable JAX_NUM_CPU_DEVICES={max(counts)}."
        )


def has_tpu_compiler() -> bool:
    """Whether the TPU's compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def chips(name: str) -> Chips:
    """Returns the chips of a name such as `cpu:8` or `v5e:4x4`.

    Raises:
      UsageError: if the TPU's compiler does not know the topology.
    """
    check(name)
    kind, _, size = name.partition(":")
    if kind == CPU:
        found: Any = jax.devices(CPU)[: int(size)]
    else:
        # The compiler need not ask the servers of Google Cloud for a TPU, nor be alone to use one.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except jax.errors.JaxRuntimeError as error:
            message = str(error).splitlines()[0]
            raise UsageError(f"The TPU's compiler rejects --devices {name}: {message}") from error
    mesh = Mesh(np.array(found).reshape(-1), (DATA,))
    return Chips(name, mesh, MEMORY.get(kind))
