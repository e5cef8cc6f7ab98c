"""Wrappers cost one gradient per step, and little memory."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from tests.methods.test_flops import flops, problem

WRAPPERS = {
    "revisit": functools.partial(flatreg.revisit, rho=0.1),
    "previous_gradient_sam": functools.partial(flatreg.previous_gradient_sam, rho=0.1),
    "momentum_sam": functools.partial(flatreg.momentum_sam, rho=0.1),
}


@functools.cache
def compiled_step(model, name):
    """A complete step with SGD and momentum, with and without a wrapper (``None``)."""
    loss_fn, params, batch, key = problem(model)
    base = optax.sgd(0.1, momentum=0.9)
    tx = base if name is None else WRAPPERS[name](base)

    def step(params, state, batch, key):
        (loss, aux), g = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state, loss, aux

    arguments = params, jax.eval_shape(tx.init, params), batch, key
    return jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()


@pytest.mark.nightly_except("mlp-*")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "vit"])
def test_a_step_costs_one_gradient(name, model):
    loss_fn, *arguments = problem(model)
    gradient = flops(jax.value_and_grad(loss_fn, has_aux=True), *arguments)
    wrapped = compiled_step(model, name).cost_analysis()["flops"]
    assert wrapped <= (1.05 if model == "mlp" else 1.02) * gradient


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=pytest.mark.nightly)])
def test_the_extra_operations_are_a_few_per_parameter(model, name):
    """What is above one gradient does not grow with the batch, so it shows on an MLP alone."""
    parameters = sum(x.size for x in jax.tree.leaves(problem(model)[1]))
    plain, wrapped = (compiled_step(model, one).cost_analysis()["flops"] for one in (None, name))
    assert 0 < wrapped - plain <= (15.1 if name == "revisit" else 10.1) * parameters


@pytest.mark.slow
@pytest.mark.nightly_except("mlp-*")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_step_needs_at_most_two_more_copies_of_memory(name, model):
    size = sum(x.nbytes for x in jax.tree.leaves(problem(model)[1]))
    plain = compiled_step(model, None).memory_analysis().temp_size_in_bytes
    wrapped = compiled_step(model, name).memory_analysis().temp_size_in_bytes
    assert wrapped <= plain + 2 * size


@pytest.mark.nightly_except("None-6")
@pytest.mark.parametrize(("dtype", "copies"), [(None, 6), (jnp.bfloat16, 3)])
def test_the_state_of_revisit_has_one_direction_per_batch(dtype, copies):
    params = problem("mlp")[1]
    base = optax.sgd(0.1)
    state = jax.eval_shape(flatreg.revisit(base, group=6, direction_dtype=dtype).init, params)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    extra = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert extra <= copies * size + 64
