"""Training: what a seed decides."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import methods as grammar
from benchmarks.common import training
from benchmarks.common.models.mlp import Mlp
from benchmarks.common.options import complete


def test_each_seed_has_its_own_weights_and_batches():
    """Methods that are compared share both, because a seed always gives the same ones."""
    options = complete(epochs=1, batch_size=4, learning_rate=0.5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    y = jnp.arange(12) % 2
    (method,) = grammar.parse("sgd", "sgd")
    program = training.build(method, Mlp((4,), 2), options, x, y)

    def flat(params):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    first = [flat(program.init(jax.random.key(seed)).variables["params"]) for seed in (0, 1)]
    assert np.abs(first[0] - first[1]).max() > 0.01
    keys, ends = [], []

    def init(key):
        keys.append(jax.random.key_data(key))
        return program.init(key)

    for seed in (0, 1, 0):
        (end,) = training.epochs(program._replace(init=init), seed, x, y)
        assert end.steps == 3
        ends.append(flat(end.state.variables["params"]))
    np.testing.assert_array_equal(ends[0], ends[2])
    assert (keys[0] != keys[1]).any(), "each seed begins at its own weights"
    assert np.abs(ends[0] - ends[1]).max() > 0.01
    same_weights = program._replace(init=lambda _: program.init(jax.random.key(0)))
    (end,) = training.epochs(same_weights, 1, x, y)
    moved = flat(end.state.variables["params"])
    assert np.abs(moved - ends[0]).max() > 1e-6, "the same weights meet other batches"
