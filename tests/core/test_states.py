"""States of methods work wherever Optax states work: jit, scan, cond, vmap, donation."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from tests.support.problems import (
    METHODS,
    OPTIONS,
    assert_close,
    avals,
    chained,
    direction,
    every_kind_of,
    every_method,
    ramp,
    tanh_net,
)

every_kind = every_kind_of(METHODS)


@pytest.mark.nightly_except("sam-*", "*-float16")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@every_kind
def test_state_keeps_its_types_in_scan_and_cond(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, batch = tanh_net(dtype)
        tx, step = chained(name)
        carry = params, tx.init(params)
        assert avals(jax.eval_shape(step, carry, batch)[0]) == avals(carry)

        def sometimes(carry, on):
            return jax.lax.cond(on, lambda c: step(c, batch)[0], lambda c: c, carry), None

        steps = jnp.array([True, False, True])
        end, _ = jax.eval_shape(lambda carry: jax.lax.scan(sometimes, carry, steps), carry)
        assert avals(end) == avals(carry)


@pytest.mark.nightly_except("sam", "gam", "perturbed_gradient", "every")
@every_kind
def test_jitted_steps_equal_eager_steps_and_trace_once(name):
    params, batch = tanh_net()
    tx, step = chained(name)
    traces = []

    def traced(carry, batch):
        traces.append(carry)
        return step(carry, batch)

    jitted = jax.jit(traced, donate_argnums=0)
    eager = params, tx.init(params)
    carry = jax.tree.map(jnp.copy, eager)
    for _ in range(2):
        before = carry
        carry, _ = jitted(before, batch)
        # Scalars that the step does not read are not donated.
        assert all(x.is_deleted() for x in jax.tree.leaves(before) if x.ndim)
        eager, _ = step(eager, batch)
    assert_close(carry, eager)
    assert len(traces) == 1


@every_method
def test_a_new_state_shares_no_buffers(name):
    """Otherwise it could not be donated."""
    leaves = jax.tree.leaves(METHODS[name]().init(tanh_net()[0]))
    assert len({id(x) for x in leaves}) == len(leaves)


@pytest.mark.nightly_except("sam", "perturbed_gradient")
@every_kind
def test_vmap_over_seeds_equals_each_seed(name):
    nets = [tanh_net(seed=seed) for seed in range(2)]
    tx, step = chained(name)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *[(p, tx.init(p), b) for p, b in nets])
    many, _ = jax.vmap(lambda params, state, batch: step((params, state), batch))(*stacked)
    params, batch = nets[-1]
    alone, _ = step((params, tx.init(params)), batch)
    assert_close(jax.tree.map(lambda x: x[-1], many), alone)


@every_method
def test_init_reads_no_values(name):
    params, _ = tanh_net()
    tx, _ = chained(name)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = tx.init(params)
    assert avals(jax.eval_shape(tx.init, shapes)) == avals(state)
    method = METHODS[name]()
    assert jax.tree.structure(method.init(shapes)) == jax.tree.structure(method.init(params))
    mapped = optax.tree.map_params(tx, jnp.ones_like, state)  # which calls init on placeholders
    assert avals(mapped) == avals(state)


@pytest.mark.nightly_except("sam_scheduled", "averaging")
@pytest.mark.parametrize("name", ["sam_scheduled", "gam_scheduled", "averaging", "per_shard"])
def test_count_of_a_scheduled_method_can_be_read_and_set(name):
    params, batch = tanh_net()
    tx, options = chained(name)[0], OPTIONS.get(name, {})
    state = tx.init(params)
    assert optax.tree.get(state, "count") == 0
    d, last = direction(tx, params, batch, state, **options)
    assert optax.tree.get(last, "count") == 1
    later, _ = direction(tx, params, batch, optax.tree.set(state, count=jnp.int32(2)), **options)
    assert optax.tree.norm(optax.tree.sub(later, d)) > 0


@pytest.mark.parametrize("name", ["sam", "penalized_gradient", "gam_accelerated", "combine"])
def test_state_of_an_unscheduled_method_has_no_arrays(name):
    assert not jax.tree.leaves(METHODS[name]().init(tanh_net()[0]))


@pytest.mark.parametrize(
    ("tx", "on_steps"),
    [(flatreg.every(flatreg.sam(ramp), 3), (0, 3)), (flatreg.after(flatreg.sam(ramp), 3), (3, 4))],
    ids=["every", "after"],
)
def test_schedules_count_only_steps_with_the_method(tx, on_steps):
    params, batch = tanh_net()
    state = tx.init(params)
    with jax.disable_jit():  # lax.cond compiles nothing.
        for step in range(5):
            d, state = direction(tx, params, batch, state)
            if step in on_steps:
                rho = float(ramp(on_steps.index(step)))
                assert_close(d, direction(flatreg.sam(rho), params, batch)[0])


def test_parameter_averaging_composes():
    params, batch = tanh_net()
    tx, step = chained("sam")
    average = optax.ema(0.5, debias=False)
    carry, averaged = (params, tx.init(params)), average.init(params)
    expected = optax.tree.zeros_like(params)
    for _ in range(3):
        carry, _ = step(carry, batch)
        mean, averaged = average.update(carry[0], averaged)
        expected = optax.tree.scale(0.5, optax.tree.add(expected, carry[0]))
    assert_close(mean, expected)
