"""The compiled program: what saves memory, and many leaves do not make it long."""

import jax
import jax.extend.core
import jax.numpy as jnp
import optax
import pytest

import flatreg
from flatreg._core.tree import norm, shift, unit
from flatreg._flax.guarded_update import all_finite

WIDTH, EXAMPLES = 16, 8192  # activations outweigh parameters and inputs
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": True}


def loss_fn(params, x):
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return jnp.mean(x**2)


def temporary_bytes(method, microbatches):
    """The temporary memory of one jitted training step, in bytes."""

    def step(params, x):
        _, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, microbatches=microbatches)(params, x)
        d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
        return optax.tree.add_scale(params, -0.1, d)

    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * 12
    x = jax.ShapeDtypeStruct((EXAMPLES, WIDTH), jnp.float32)
    return jax.jit(step).lower(params, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.nightly_except("sam")
@pytest.mark.parametrize(
    "method",
    [flatreg.sam(0.05), flatreg.gradient_regularization(0.1, hvp=flatreg.forward_hvp)],
    ids=["sam", "gradient_regularization"],
)
def test_four_microbatches_need_less_than_40_percent_of_memory(method):
    assert temporary_bytes(method, 4) < 0.4 * temporary_bytes(method, 1)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (flatreg.gam_accelerated(), 3),
        (flatreg.combine(flatreg.sam(0.05), flatreg.penalized_gradient()), 2),
        (flatreg.observe(flatreg.penalized_gradient()), 1),
        (flatreg.when_sharp(flatreg.penalized_gradient()), 0),  # It calls the oracle in a branch.
    ],
    ids=["gam_accelerated", "combine", "observe", "when_sharp"],
)
def test_gradients_are_complete_before_a_method_uses_them(method, calls):
    """Otherwise, arrays from which XLA computes a gradient stay until its last use."""

    @jax.jit
    def oracle(w):
        return jax.grad(lambda w: jnp.sum(w**4))(w)

    w = jnp.ones(3)
    update = lambda g, w: method.update(g, method.init(w), w, grad_fn=oracle)  # noqa: E731
    jaxpr = jax.make_jaxpr(update)(w, w).jaxpr
    passes = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "oracle"]
    gradients = {jaxpr.invars[0], *(out for eqn in passes for out in eqn.outvars)}
    users = [
        eqn.primitive.name
        for eqn in jaxpr.eqns
        if any(isinstance(x, jax.extend.core.Var) and x in gradients for x in eqn.invars)
    ]
    assert len(passes) == calls
    assert users == ["optimization_barrier"] * (1 + calls)


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
def test_the_program_grows_linearly_with_the_leaves(function):
    """From 12 to 24 leaves, it grows by twice as much as from 6 to 12."""
    small, medium, large = (instructions(function, n) for n in (6, 12, 24))
    assert large - medium < 1.25 * 2 * (medium - small)


@pytest.mark.parametrize("function", [norm, all_finite])
def test_leaves_of_one_shape_need_one_reduction(function):
    def reductions(leaves):
        tree = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * leaves
        return jax.jit(function).lower(tree).compile(OPTIMIZED).as_text().count(" reduce(")

    assert reductions(12) == reductions(1)
