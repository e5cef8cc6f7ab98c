"""Configures JAX for the tests: eight CPU devices, and the fixture ``x64`` for double precision.

The tests compile many small programs and run each of them once, so XLA is set to compile fast, and
Python collects garbage rarely: the caches of JAX hold millions of objects, which every full
collection would visit. Together these settings save more than a third of the suite's time.
"""

import fnmatch
import gc
import os
import pathlib

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import jax.experimental
import pytest

# This must come before anything starts the backend.
jax.config.update("jax_num_cpu_devices", 8)
flags = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # Newer XLA does not have this flag.
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
gc.set_threshold(200_000, 50, 100)
if not hasattr(jax, "enable_x64"):  # JAX before 0.8
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
    """Clears the caches of JAX before the process reaches Linux's limit of about 65,000 mappings.

    Every program that XLA compiles holds memory mappings.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Makes the cases that ``nightly_except`` does not name nightly tests, and no longer slow ones.

    The plain run then has one case per way in which the code can differ, and the nightly run has
    all others. A name without a case is an error, unless only some tests of a file are collected.
    """
    unused = {}
    for item in items:
        marker = item.get_closest_marker("nightly_except")
        if marker:
            names = unused.setdefault(item.nodeid.partition("[")[0], set(marker.args))
            found = {name for name in marker.args if fnmatch.fnmatchcase(item.callspec.id, name)}
            names -= found
            if not found:
                item.add_marker(pytest.mark.nightly)
        if item.get_closest_marker("nightly"):
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "slow"]
    stale = {test: names for test, names in unused.items() if names}
    if stale and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"nightly_except names cases that do not exist: {stale}")
