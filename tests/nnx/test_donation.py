"""A model and its optimizer can be donated even if they begin with shared arrays."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.assertions import assert_leaves_close
from tests.support.networks.nnx_models import MODES, Plain, arrays
from tests.support.steps import examples


class WithTarget(Plain):
    """A network and its target network, which starts as a copy and follows it."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.target = nnx.BatchStat(self.head.kernel[...])

    def __call__(self, x):
        self.target[...] = 0.9 * self.target[...] + 0.1 * self.head.kernel[...]
        return super().__call__(x) + 0.1 * nnx.tanh(self.body(x)) @ self.target[...]


@pytest.mark.slow
@pytest.mark.nightly_except("dog")
@pytest.mark.parametrize(
    ("network", "base", "mode"),
    [
        (Plain, optax.contrib.dog, MODES[0]),
        (Plain, optax.contrib.prodigy, MODES[-1]),
        (WithTarget, lambda: optax.sgd(0.1), MODES[0]),
    ],
    ids=["dog", "prodigy", "target"],
)
def test_shared_arrays_are_donated(network, base, mode):
    """The steps equal those without donation, and all buffers are reused."""
    tx, ends = optax.chain(flatreg.sam(0.1), base()), []
    for donate_argnums in ((), (0, 1)):
        model = network(nnx.Rngs(0))
        optimizer = Optimizer(model, tx, wrt=nnx.Param, **mode)
        step = make_train_step(classification_loss)
        step = nnx.jit(step, donate_argnums=donate_argnums, **mode)
        before = [x for x in jax.tree.leaves(nnx.state(model)) if x.ndim]
        for seed in range(2):
            step(model, optimizer, examples(seed=seed))
        assert all(x.is_deleted() == bool(donate_argnums) for x in before)
        ends.append(arrays((model, optimizer)))
    assert_leaves_close(*ends, 1e-6)


def test_tied_modules_stay_tied():
    """Only arrays are copied. A Variable that the model holds twice is still one Variable."""
    model = Plain(nnx.Rngs(0))
    model.again = model.head
    kernel = jnp.copy(model.head.kernel[...])
    optimizer = Optimizer(model, optax.contrib.dog(), wrt=nnx.Param, **MODES[0])
    assert model.again is model.head
    assert jnp.array_equal(model.head.kernel[...], kernel)
    leaves = jax.tree.leaves(nnx.state((model, optimizer)))
    assert len({id(x) for x in leaves}) == len(leaves)
