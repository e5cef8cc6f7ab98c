"""The cost of an NNX step in traces, buffers, memory and FLOPs; it compiles for accelerators."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from jax import export

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.cases import every_kind
from tests.support.networks.nnx_models import (
    Adapted,
    Adapter,
    Noisy,
    PlainLoop,
    arrays,
    in_both_modes,
    pure,
)
from tests.support.steps import chain, examples


@in_both_modes
def test_a_step_is_traced_once_and_its_buffers_are_donated(mode):
    model = Noisy(nnx.Rngs(0))
    tx = chain(flatreg.observe(flatreg.sam(0.1)))
    scale = DynamicScale()
    optimizer = Optimizer(model, tx, wrt=nnx.Param, dynamic_scale=scale, **mode)
    traces = []

    def step(model, optimizer, batch):
        traces.append(batch)
        return make_train_step(classification_loss)(model, optimizer, batch)

    donating = nnx.jit(step, donate_argnums=(0, 1), **mode)
    for seed in range(3):
        states = nnx.state(model, nnx.Not(nnx.RngState)), nnx.state(optimizer.opt_state)
        before = [x for x in jax.tree.leaves(states) if x.ndim]
        assert not donating(model, optimizer, examples(seed=seed))["skipped"]
        assert all(x.is_deleted() for x in before)
    assert len(traces) == 1


def compiled(model, batch, loss_fn, wrt, method=None, **options):
    optimizer = nnx.Optimizer(model, chain(method or flatreg.sam(0.1)), wrt=wrt)
    step, state = pure(make_train_step(loss_fn, **options), model, optimizer)
    return jax.jit(step).lower(state, batch).compile()


def mean_square(model, x):
    return jnp.mean(model(x) ** 2)


@pytest.mark.slow
def test_frozen_weights_stay_and_cost_no_gradient():
    """Only Variables of the type ``wrt`` are differentiated, have moments and change."""
    model, x = Adapted(nnx.Rngs(0)), jnp.ones((64, 256))
    loop = PlainLoop(model, chain(flatreg.sam(0.1)), mean_square, wrt=Adapter)
    by_hand = loop.jitted.lower(loop.params, loop.rest, loop.opt_state, x).compile()
    flops = compiled(model, x, mean_square, Adapter).cost_analysis()["flops"]
    everything = compiled(model, x, mean_square, (Adapter, nnx.Param)).cost_analysis()["flops"]
    assert flops < 1.02 * by_hand.cost_analysis()["flops"]
    assert flops < 0.7 * everything  # no gradients of the kernels

    frozen, factors = arrays(model, nnx.Param), arrays(model, Adapter)
    optimizer = nnx.Optimizer(model, chain(flatreg.sam(0.1)), wrt=Adapter)
    nnx.jit(make_train_step(mean_square))(model, optimizer, x)
    assert all(jnp.array_equal(a, b) for a, b in zip(arrays(model, nnx.Param), frozen, strict=True))
    assert not any(
        jnp.array_equal(a, b) for a, b in zip(arrays(model, Adapter), factors, strict=True)
    )
    assert len(arrays(optimizer.opt_state)) == len(factors)


@pytest.mark.slow
def test_microbatches_do_not_stack_frozen_weights():
    """The auxiliary data of the clean pass contain only the Variables that it changes."""
    model, x = Adapted(nnx.Rngs(0)), jnp.ones((64, 256))
    table = model.layers[0].kernel[...].nbytes
    one = compiled(model, x, mean_square, Adapter).memory_analysis().temp_size_in_bytes
    eight = compiled(model, x, mean_square, Adapter, microbatches=8)
    assert eight.memory_analysis().temp_size_in_bytes < one + table


@pytest.mark.slow
@pytest.mark.nightly_except("sam")
@pytest.mark.parametrize(
    "method", [flatreg.sam(0.1), flatreg.gam_accelerated()], ids=["sam", "gam"]
)
def test_four_microbatches_need_less_than_two_fifths_of_memory(method):
    model, x = Adapted(nnx.Rngs(0), width=32), jax.ShapeDtypeStruct((4096, 32), jnp.float32)

    def temporary_bytes(microbatches):
        lowered = compiled(model, x, mean_square, ..., method, microbatches=microbatches)
        return lowered.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.4 * temporary_bytes(1)


@pytest.mark.nightly_except("sam", "gam")
@every_kind
def test_the_whole_step_compiles_for_tpu_and_cuda(case):
    model = Noisy(nnx.Rngs(0))
    optimizer = Optimizer(model, chain(flatreg.observe(case.make())), wrt=nnx.Param)
    step, state = pure(make_train_step(classification_loss), model, optimizer)
    exported = export.export(jax.jit(step), platforms=("tpu", "cuda"))(state, examples())
    assert exported.platforms == ("tpu", "cuda")
