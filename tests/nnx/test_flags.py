"""Steps, measures and layers work with every setting of Flax's flags for NNX."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg import lipschitz, measures
from flatreg.nnx import (
    Optimizer,
    SpectralNorm,
    classification_loss,
    make_eval_step,
    make_train_step,
    value_and_grad_fn,
)
from tests.support.assertions import assert_leaves_close
from tests.support.networks.nnx_models import HAS_TREE_MODE, arrays
from tests.support.steps import CLASSES, examples


class Network(nnx.Module):
    """A spectrally normalized layer with dropout, BatchNorm, and a dense layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        first = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.2, rngs=rngs))
        self.body = SpectralNorm(first, jnp.ones((2, 4)), bound=0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.body(x)))


@nnx.jit
def steps(model, optimizer, other, stock, batch):
    """A step of flatreg and one by hand with a stock optimizer, and an evaluation of the first."""
    metrics = make_train_step(classification_loss)(model, optimizer, batch)
    loss_fn = lambda model, batch: classification_loss(model, batch)[0]  # noqa: E731
    loss, grads, grad_fn = value_and_grad_fn(loss_fn)(other, batch)
    stock.update(other, grads, grad_fn=grad_fn)
    return metrics["loss"], loss, make_eval_step(classification_loss)(model, batch)["loss"]


def outcome():
    """All numbers of two steps, and measures of the trained network."""
    tx, batch = optax.chain(flatreg.sam(0.1), optax.sgd(0.1, momentum=0.9)), examples()
    model, other = Network(), Network()
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    stock = nnx.Optimizer(other, tx, wrt=nnx.Param)
    losses = [steps(model, optimizer, other, stock, batch) for _ in range(2)]
    assert optimizer.step[...] == 2
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params):
        return classification_loss(nnx.merge(graphdef, params, rest), batch)[0]

    slopes = measures.gradient_statistics(
        lambda params, x: nnx.merge(graphdef, params, rest)(x).mean(), params, batch[0]
    )
    head_def, head = nnx.split(model.head)
    head_of = lambda params, x: nnx.merge(head_def, params)(x)  # noqa: E731
    bound = lipschitz.lipschitz_bound(head_of, head, jnp.ones((1, 8)))
    return losses, arrays(model), arrays(other), loss_fn(params), slopes, bound.upper


@functools.cache
def with_default_flags():
    return jax.tree.leaves(outcome())


@pytest.mark.slow
@pytest.mark.nightly_except("both off", "graph_updates off")
@pytest.mark.skipif(not HAS_TREE_MODE, reason="this version of Flax lacks the flags")
@pytest.mark.parametrize(
    ("graph_mode", "graph_updates"),
    [(True, False), (False, True), (False, False)],
    ids=["graph_updates off", "graph_mode off", "both off"],
)
def test_every_setting_of_the_flags_gives_the_same_numbers(graph_mode, graph_updates):
    """The flags are nnx_graph_mode and nnx_graph_updates."""
    expected = with_default_flags()
    with nnx.set_graph_mode(graph_mode), nnx.set_graph_updates(graph_updates):
        found = jax.tree.leaves(outcome())
    assert_leaves_close(found, expected, 1e-6)
