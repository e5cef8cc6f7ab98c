"""Steps on eight devices: same values and shardings, and no unnecessary communication."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flatreg._core.tree import norm
from flatreg._flax.guarded_update import all_finite
from tests.support.cases import every_kind
from tests.support.problems import (
    METHODS,
    OPTIONS,
    assert_close,
    chained,
    every_kind_of,
    loss_fn,
    tanh_net,
)

DEVICES = 8
REPLICATED = {"hidden": {"kernel": P(), "bias": P()}, "out": P()}
SHARDED = {"hidden": {"kernel": P(None, "data"), "bias": P("data")}, "out": P("data")}
# The numbers of all-reduces that differ from the default, which is one per call of the oracle plus
# one for the clean pass if it is used. The two gradients of an antithetic pair share one.
REDUCTIONS = {"gam": 4, "gam_scaled": 4, "combine": 4, "perturbed_gradient_antithetic": 1}

WHOLE_BATCH = [name for name in METHODS if name not in OPTIONS]

every_method = every_kind_of(WHOLE_BATCH)
both_axes = pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)


def gathering_loss(params, batch):
    """The loss of parameters that are gathered first, as in fully sharded training."""
    return loss_fn(jax.tree.map(lambda w: jax.sharding.reshard(w, P()), params), batch)


@functools.cache
def on_one_device(name, **options):
    """The parameters and optimizer state after a step on one device."""
    tx, step = chained(name, **options)
    params, batch = tanh_net()
    return jax.device_get(step((params, tx.init(params)), batch)[0])


@functools.cache
def on_mesh(axes, name, sharded=False, **options):
    """A compiled step on eight devices, and its inputs."""
    loss = gathering_loss if sharded and axes == AxisType.Explicit else loss_fn
    tx, step = chained(name, loss_fn=loss, **options)

    with jax.set_mesh(jax.make_mesh((DEVICES,), ("data",), (axes,))):
        params, batch = tanh_net()
        params = jax.tree.map(jax.device_put, params, SHARDED if sharded else REPLICATED)
        carry = params, tx.init(params)
        batch = jax.device_put(batch, P("data"))
        compiled = jax.jit(lambda carry, batch: step(carry, batch)[0]).lower(carry, batch).compile()
        return compiled, carry, batch


def collectives(compiled):
    """The number of collective operations of each kind in the compiled program."""
    pattern = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return collections.Counter(re.findall(pattern, compiled.as_text()))


def assert_keeps_shardings_and_values(name, compiled, carry, batch, **options):
    """Checks that outputs have the shardings of the inputs and the values of one device."""
    new = compiled(carry, batch)
    for before, after in zip(jax.tree.leaves(carry), jax.tree.leaves(new), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
    assert_close(jax.device_get(new), on_one_device(name, **options))


@pytest.mark.nightly_except("sam-*Explicit", "gam-*Auto")
@both_axes
@every_method
def test_data_parallel_steps_keep_shardings_and_values(name, axes):
    assert_keeps_shardings_and_values(name, *on_mesh(axes, name))


@pytest.mark.nightly_except("sam-*", "gam-*Auto", "looksam-*Explicit")
@both_axes
@every_kind
def test_data_parallel_steps_use_one_all_reduce_per_gradient(case, axes):
    """One all-reduce per gradient or Hessian-vector product, and no all-gather."""
    reductions = REDUCTIONS.get(case.name, case.uses_clean + case.calls)
    assert collectives(on_mesh(axes, case.name)[0]) == {"all-reduce": reductions}


@pytest.mark.nightly_except("sam-*Explicit", "gam-*Auto")
@both_axes
@every_method
def test_sharded_parameters_keep_shardings_and_values(name, axes):
    assert_keeps_shardings_and_values(name, *on_mesh(axes, name, sharded=True))


@pytest.mark.slow
@pytest.mark.nightly_except("sam-*Explicit", "gam_forward-*Auto")
@both_axes
@pytest.mark.parametrize("name", ["sam", "gam_forward"])
def test_microbatches_of_a_sharded_batch_stay_sharded(name, axes):
    compiled, *inputs = on_mesh(axes, name, microbatches=2)
    assert_keeps_shardings_and_values(name, compiled, *inputs, microbatches=2)
    assert set(collectives(compiled)) == {"all-reduce"}


@pytest.mark.nightly_except("2-*")
@both_axes
@pytest.mark.parametrize("microbatches", [1, 2])
def test_per_shard_needs_only_all_reduces(microbatches, axes):
    options = {"shards": DEVICES, "microbatches": microbatches}
    compiled, *inputs = on_mesh(axes, "per_shard", **options)
    assert_keeps_shardings_and_values("per_shard", compiled, *inputs, **options)
    assert set(collectives(compiled)) == {"all-reduce"}


@both_axes
@pytest.mark.parametrize("function", [norm, all_finite])
def test_leaves_of_one_shape_in_different_layouts_are_not_moved(function, axes):
    mesh = jax.make_mesh((DEVICES,), ("data",), (axes,))
    leaves = [
        jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=NamedSharding(mesh, layout))
        for layout in (P("data"), P(None, "data"))
    ]
    compiled = jax.jit(function).lower(leaves).compile()
    assert {*collectives(compiled)} == {"all-reduce"}


@pytest.mark.nightly_except("sam", "gam", "looksam", "observe")
@every_method
def test_training_step_lowers_for_tpu_and_cuda(name):
    tx, step = chained(name)
    params, batch = tanh_net()
    exported = export.export(jax.jit(step), platforms=["tpu", "cuda"])(
        (params, tx.init(params)), batch
    )
    assert exported.platforms == ("tpu", "cuda")
