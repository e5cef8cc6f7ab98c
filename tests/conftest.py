"""Eight CPU devices, and float64 by request: a test that takes ``x64`` runs in double precision.

A test compiles many small programs and runs each of them once, so XLA is told to compile fast.
"""

import os
import pathlib

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import jax.experimental
import pytest

# Before anything starts the backend:
jax.config.update("jax_num_cpu_devices", 8)
if jax.__version_info__ < (0, 11):  # Newer XLA compiles as fast without this flag, and has it not.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"
if not hasattr(jax, "enable_x64"):  # Before 0.8.
    jax.enable_x64 = jax.experimental.enable_x64

hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Programs that XLA compiled hold memory maps, of which Linux grants a process some 65,000."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
