"""The compiled program grows in proportion to the number of leaves, not to its square."""

import jax
import jax.numpy as jnp
import pytest

from flatreg._core.tree import shift, unit
from flatreg._flax.guarded_update import all_finite

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": True}


def shifted(params, g):
    return shift(params, g, 0.05)


def guarded(params, g):
    return jax.tree.map(lambda w, x: jnp.where(all_finite(g), w + x, w), params, g)


def penalized(params, g):
    return jax.tree.map(jnp.add, params, unit(g, 3))


def instructions(function, leaves):
    trees = ([jax.ShapeDtypeStruct((8, 4), jnp.float32)] * leaves,) * 2
    program = jax.jit(function).lower(*trees).compile(OPTIMIZED)
    return program.as_text().count(" = ")


@pytest.mark.parametrize("function", [shifted, guarded, penalized])
def test_program_is_linear_in_the_number_of_leaves(function):
    """From 12 to 24 leaves, it grows by twice as much as from 6 to 12."""
    small, medium, large = (instructions(function, n) for n in (6, 12, 24))
    assert large - medium < 1.25 * 2 * (medium - small)
