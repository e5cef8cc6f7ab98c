"""Networks of normalized layers: training, checkpoints, and other statistics and masks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flatreg
from flatreg import checkpoint
from flatreg import linen as flatreg_linen
from flatreg import nnx as flatreg_nnx
from flatreg.linen import SpectralNorm as LinenSpectralNorm
from flatreg.nnx import SpectralNorm as NNXSpectralNorm
from tests.support.assertions import assert_equal

SAM = optax.chain(flatreg.sam(0.05), optax.adam(0.05))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return LinenSpectralNorm(nn.Conv(4, (3, 3), strides=2))(x, update_stats=train)


class LinenModel(nn.Module):
    """A rematerialized convolution and a dense layer, both with norm 1."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.remat(Block, static_argnums=2)()(x, train))
        return 4 * LinenSpectralNorm(nn.Dense(3))(x.reshape(len(x), -1), update_stats=train)


class NNXModel(nnx.Module):
    """The same network in NNX."""

    def __init__(self, x, rngs):
        conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.conv = NNXSpectralNorm(conv, x, rngs=rngs)
        hidden = jnp.zeros((1, 36))
        self.dense = NNXSpectralNorm(nnx.Linear(36, 3, rngs=rngs), hidden, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(nnx.remat(lambda conv, x: conv(x))(self.conv, x))
        return 4 * self.dense(x.reshape(len(x), -1))


def linen_training(batch):
    """A function ``step(state) -> state, loss``, and the first state."""
    model = LinenModel()
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), batch[0])
    state = flatreg_linen.TrainState.create(apply_fn=model.apply, tx=SAM, **variables)
    step = jax.jit(flatreg_linen.make_train_step(flatreg_linen.classification_loss))

    def run(state):
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    return run, state


def nnx_training(batch):
    """The same in NNX."""
    model = NNXModel(batch[0], nnx.Rngs(0))
    graphdef, state = nnx.split((model, nnx.Optimizer(model, SAM, wrt=nnx.Param)))
    step = flatreg_nnx.make_train_step(flatreg_nnx.classification_loss)

    @jax.jit
    def run(state):
        merged = nnx.merge(graphdef, state)
        loss = step(*merged, batch)["loss"]
        return nnx.state(merged), loss

    return run, state


@pytest.mark.slow
@pytest.mark.nightly_except("nnx*")
@pytest.mark.parametrize("training", [linen_training, nnx_training])
def test_it_trains_with_sam_and_resumes_from_a_checkpoint(training, tmp_path):
    x = jax.random.normal(jax.random.key(1), (12, 6, 6, 1))
    run, start = training((x, jnp.arange(12) % 3))
    state, losses = start, []
    for _ in range(20):
        state, loss = run(state)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0]
    checkpoint.save(tmp_path / "20", state)
    restored = checkpoint.restore(tmp_path / "20", start)
    assert_equal(run(state), run(restored))


@pytest.mark.slow
def test_nnx_layers_keep_their_other_statistics_and_masks():
    layer = nnx.Sequential(
        nnx.Linear(4, 5, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(5, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        nnx.Linear(5, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    )
    x = jax.random.normal(jax.random.key(0), (8, 4))
    wrapped = NNXSpectralNorm(layer, x, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda wrapped, x: wrapped(x))
    y = run(wrapped, x)
    assert list(wrapped.u) == ["layers/0/kernel", "layers/3/kernel"]
    assert not np.array_equal(run(wrapped, x), y)  # a different dropout mask
    assert np.any(layer.layers[1].mean[...] != 0)
    wrapped.eval()
    assert np.array_equal(run(wrapped, x), run(wrapped, x))


def test_linen_layers_keep_their_other_statistics_and_masks():
    class Inner(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(not self.train)(nn.Dense(5)(x))
            x = nn.Dropout(0.5, deterministic=not self.train)(x)
            return nn.Dense(3, param_dtype=jnp.bfloat16)(x)

    x = jax.random.normal(jax.random.key(0), (8, 4))
    init = functools.partial(LinenSpectralNorm(Inner(False)).init, update_stats=False)
    variables = jax.jit(init)(jax.random.key(0), x)
    apply = LinenSpectralNorm(Inner(True)).apply
    run = jax.jit(functools.partial(apply, mutable=["batch_stats"], update_stats=True))
    keys = jax.random.split(jax.random.key(1))
    (y, updated), (other, _) = (run(variables, x, rngs={"dropout": key}) for key in keys)
    stats = updated["batch_stats"]
    assert list(stats["u"]) == ["Dense_0/kernel", "Dense_1/kernel"]
    assert np.any(stats["layer"]["BatchNorm_0"]["mean"] != 0)
    assert not np.array_equal(y, other)
