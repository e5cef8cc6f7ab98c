"""A checkpoint of NNX holds the state of the model and the optimizer, not the objects."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import flatreg
from flatreg import checkpoint
from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.networks.nnx_models import Plain, arrays
from tests.support.steps import CLASSES, chain, examples

STEP = nnx.jit(make_train_step(classification_loss))


def start():
    """A model with a list of layers and a dropout key, and its optimizer."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        Plain(rngs), nnx.Dropout(0.2, rngs=rngs), nnx.Linear(CLASSES, CLASSES, rngs=rngs)
    )
    tx = chain(flatreg.observe(flatreg.sam(0.1)))
    return model, Optimizer(model, tx, wrt=nnx.Param, dynamic_scale=DynamicScale())


def train(model, optimizer, steps):
    for step in range(steps):
        STEP(model, optimizer, examples(seed=step))
    return arrays((model, optimizer))


@pytest.mark.slow
def test_a_restart_continues_the_same_trajectory_bitwise(tmp_path):
    before = start()
    train(*before, 2)
    checkpoint.save(tmp_path / "2", nnx.state(before))
    end = train(*before, 3)
    model, optimizer = start()
    saved = checkpoint.restore(tmp_path / "2", nnx.state((model, optimizer)))
    nnx.update((model, optimizer), saved)
    assert optimizer.step[...] == 2
    jax.tree.map(np.testing.assert_array_equal, train(model, optimizer, 3), end)


@pytest.mark.parametrize("hold", [lambda m, o: m, lambda m, o: (m, o), lambda m, o: {"o": o}])
def test_objects_are_refused_with_the_call_that_saves_them(tmp_path, hold):
    state = hold(*start())
    with pytest.raises(TypeError, match=r"checkpoint\.save\(path, nnx\.state\(\(model, optimizer"):
        checkpoint.save(tmp_path / "0", state)
    assert not (tmp_path / "0").exists()
    checkpoint.save(tmp_path / "0", nnx.state(state))
    with pytest.raises(TypeError, match=r"nnx\.update\(\(model, optimizer\), checkpoint\.restore"):
        checkpoint.restore(tmp_path / "0", state)
