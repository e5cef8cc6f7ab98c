"""Dropout in an NNX step: one mask for all passes, and one count per step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import make_train_step
from tests.support.assertions import assert_leaves_close, assert_leaves_equal
from tests.support.networks.nnx_models import Mask, Stacked, arrays, in_both_modes, trained
from tests.support.steps import chain, examples, only_cases


def mask_loss(model, x):
    """A loss whose gradient is the sum of the masks, at any weights."""
    out = model(x)
    return out.sum(), {"masks": (out / model.weight[...]).sum(0)}


@pytest.mark.nightly_except("sam-*", "gam-*")
@in_both_modes
@only_cases("sam", "penalized_gradient", "gradient_norm_penalty_2", "gam", "gam_accelerated")
def test_all_passes_share_one_mask_and_each_step_has_its_own(case, mode):
    """With different masks, the method would see a gradient that changes with the weights."""
    model, tx = Mask(nnx.Rngs(0)), optax.chain(case.make(), optax.sgd(0.01))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param, **mode)
    step = nnx.jit(make_train_step(mask_loss), **mode)
    masks = []
    for count in range(3):
        assert model.dropout.rngs.count[...] == count
        before = model.weight[...].copy()
        masks.append(step(model, optimizer, jnp.ones((4, 1)))["masks"])
        assert_leaves_close(model.weight[...], before - 0.01 * masks[-1], 1e-6)
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


@in_both_modes
@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_each_part_of_a_batch_has_its_own_mask(option, mode):
    """Its key is that of the model with the number of the part's first example folded in.

    The step changes no key of the model and advances the dropout count by one.
    """
    method = flatreg.sam(0.3) if option == "microbatches" else flatreg.per_shard(flatreg.sam(0.3))
    tx = optax.chain(method, optax.sgd(1.0))
    numbers = range(4) if option == "microbatches" else range(0, 8, 2)
    masks = []
    for number in numbers:
        part = Mask(nnx.Rngs(0))
        part.dropout.rngs.key[...] = jax.random.fold_in(part.dropout.rngs.key[...], number)
        masks.append(mask_loss(part, jnp.ones((2, 1)))[1]["masks"])
    assert len({mask.tobytes() for mask in masks}) == 4
    before = Mask(nnx.Rngs(0))
    model, _, metrics = trained(
        Mask(nnx.Rngs(0)), tx, [jnp.ones((8, 1))], mask_loss, mode, **{option: 4}
    )
    assert_leaves_close(metrics["masks"], sum(masks) / 4, 1e-6)
    assert_leaves_close(model.weight[...], before.weight[...] - sum(masks) / 4, 1e-6)
    assert_leaves_equal(arrays(model, nnx.RngKey), arrays(before, nnx.RngKey))
    assert model.dropout.rngs.count[...] == 1


@pytest.mark.slow
def test_stacked_layers_keep_keys_and_advance_each_count():
    """The layers are run by a scan. Each count advances by one per step."""
    model = Stacked(nnx.Rngs(0))
    before = arrays(model, nnx.RngKey)
    trained(model, chain(flatreg.sam(0.1)), [examples()] * 2, microbatches=4)
    assert_leaves_equal(arrays(model, nnx.RngKey), before)
    np.testing.assert_array_equal(model.blocks.dropout.rngs.count[...], [2, 2, 2])
