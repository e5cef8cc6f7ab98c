"""The walk through a program visits every operation once, also inside calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg.lipschitz.programs import all_equations, walk

CONSTANT = np.arange(3.0, dtype=np.float32)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))
FUNCTIONS = {
    "plain": lambda x, y: jnp.sin(x) * y + CONSTANT,
    "jit": lambda x, y: jax.jit(lambda x: jnp.exp(x) + y)(x),
    "checkpoint": lambda x, y: jax.checkpoint(lambda x: jnp.sin(x + y))(x) + 1,
    "custom derivatives": lambda x, y: doubled(jax.nn.relu(x)) - y,
    "nested": lambda x, y: jax.checkpoint(jax.jit(lambda x: jax.nn.silu(doubled(x))))(x) / y,
    "several outputs": lambda x, y: jnp.split(jax.jit(jnp.concatenate)([x, y]), 3),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_evaluating_each_operation_evaluates_the_function(function):
    x, y = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 2.0, 3.0])
    program = jax.make_jaxpr(function)(x, y)
    visited = []

    def evaluate(equation, operands, path):
        del path
        visited.append(equation)
        results = equation.primitive.bind(*operands, **equation.params)
        return results if equation.primitive.multiple_results else [results]

    results = walk(program, [x, y], evaluate, constant=lambda value: value)
    expected = jax.tree.leaves(function(x, y))
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-6)
    calls = [equation for equation in all_equations(program) if equation not in visited]
    assert not {equation.primitive.name for equation in visited} & {"jit", "pjit", "remat2"}
    assert all("jaxpr" in " ".join(equation.params) for equation in calls)


def test_the_path_contains_the_scopes_of_the_calls_around():
    def function(x):
        with jax.named_scope("outer"):
            return jax.jit(jax.named_scope("inner")(jnp.sin))(x)

    paths = []

    def visit(equation, operands, path):
        paths.append((equation.primitive.name, path))
        return operands

    walk(jax.make_jaxpr(function)(1.0), [None], visit, constant=lambda value: value)
    assert paths == [("sin", "outer/inner")]
