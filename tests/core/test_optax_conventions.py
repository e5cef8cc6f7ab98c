"""Every method composes like Optax's transformations: chains, wrappers, hyperparameters."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from flatreg import lipschitz
from tests.support.cases import CASES
from tests.support.problems import (
    METHODS,
    OPTIONS,
    assert_close,
    assert_equal,
    avals,
    direction,
    every_kind_of,
    loss_fn,
    ramp,
    tanh_net,
    training_step,
)

every_kind = every_kind_of(METHODS)
STATIC = {"scale", "hvp", "ascent_hvp", "normalize_clean", "distribution"}


def signature(case):
    return inspect.signature(case.factory).parameters


def inject(case, **changes):
    static_args = STATIC & set(signature(case))
    return optax.inject_hyperparams(case.factory, static_args)(**case.scalars | changes)


injected = pytest.mark.parametrize(
    ("case", "scalar"),
    [
        pytest.param(
            case,
            scalar,
            id=f"{case.name}-{scalar}",
            marks=[pytest.mark.nightly] if case.variant else [],
        )
        for case in CASES
        for scalar in case.scalars
        if "kwargs" not in signature(case)  # inject_hyperparams cannot pass on **kwargs
    ],
)


@every_kind
def test_unknown_extra_arguments_change_nothing(name):
    params, batch = tanh_net()
    tx, options = METHODS[name](), OPTIONS.get(name, {})

    def program(**others):
        def update(params, state):
            _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
            return tx.update(g, state, params, grad_fn=grad_fn, **others)

        return str(jax.make_jaxpr(update)(params, tx.init(params)))

    assert program(value=1.0, value_fn=loss_fn, tag={"a": "b"}, rho=7.0) == program()


@pytest.mark.nightly_except(
    "sam", "gam", "perturbed_gradient", "looksam", "combine", "every", "observe"
)
@every_kind
def test_chains_pass_the_direction_on_and_keep_the_state(name):
    params, batch = tanh_net()
    options, tx = OPTIONS.get(name, {}), METHODS[name]()
    d, state = direction(tx, params, batch, **options)
    named = optax.named_chain(("flat", tx), ("base", optax.chain(optax.scale(-0.5))))
    updates, states = direction(named, params, batch, **options)
    assert_equal(updates, optax.tree.scale(-0.5, d))
    assert_equal(states["flat"], state)


@every_kind
def test_updates_have_the_mixed_dtypes_of_the_parameters(name):
    params, batch = tanh_net()
    params["out"] = params["out"].astype(jnp.bfloat16)
    tx, options = METHODS[name](), OPTIONS.get(name, {})
    d, _ = jax.eval_shape(lambda params: direction(tx, params, batch, **options), params)
    assert avals(d) == avals(params)


@pytest.mark.nightly_except("gam", "perturbed_gradient", "every")
@every_kind
def test_apply_if_finite_skips_nonfinite_perturbed_gradients(name):
    params, batch = tanh_net()
    options = OPTIONS.get(name, {})
    _, g, _ = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
    _, _, grad_fn = flatreg.value_and_grad_fn(lambda p, b: jnp.nan * loss_fn(p, b), **options)(
        params, batch
    )
    tx = optax.chain(METHODS[name](), optax.apply_if_finite(optax.sgd(0.1), 10))
    state = tx.init(params)
    with jax.disable_jit():  # lax.cond compiles nothing.
        for _ in range(4):  # Some methods are off on the first step.
            updates, state = tx.update(g, state, params, grad_fn=grad_fn)
            if optax.tree.get(state, "total_notfinite"):
                break
            assert optax.tree.norm(updates) > 0
    assert optax.tree.norm(updates) == 0


@pytest.mark.nightly_except("sam", "gam", "perturbed_gradient", "looksam", "combine")
@every_kind
def test_conditionally_transform_skips_the_method_on_off_steps(name):
    params, batch = tanh_net()
    options, tx = OPTIONS.get(name, {}), METHODS[name]()
    odd = optax.conditionally_transform(tx, lambda step: step % 2 == 1)
    with jax.disable_jit():  # lax.cond compiles nothing.
        g, off = direction(odd, params, batch, **options)
        assert_equal(g, flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)[1])
        assert_equal(off.inner_state, tx.init(params))
        d, on = direction(odd, params, batch, off, **options)
        assert_equal((d, on.inner_state), direction(tx, params, batch, **options))


@injected
def test_injected_scalars_can_be_changed_in_the_state(case, scalar):
    params, batch = tanh_net()
    tx = inject(case)
    state = tx.init(params)
    assert state.hyperparams[scalar] == np.float32(case.scalars[scalar])
    state.hyperparams[scalar] = jnp.float32(0.7)
    d, state = direction(tx, params, batch, state)
    assert_close(d, direction(case.make(**{scalar: 0.7}), params, batch)[0])
    assert state.hyperparams[scalar] == np.float32(0.7)


@pytest.mark.nightly_except(
    "sam-rho", "gam-alpha", "gam_accelerated-beta", "perturbed_gradient-sigma", "looksam-rho"
)
@injected
def test_schedules_work_with_and_without_injection(case, scalar):
    params, batch = tanh_net()
    by_optax, own = inject(case, **{scalar: ramp}), case.make(**{scalar: ramp})
    states = [by_optax.init(params), own.init(params)]
    for step in range(2):
        expected, _ = direction(case.make(**{scalar: float(ramp(step))}), params, batch)
        for i, tx in enumerate((by_optax, own)):
            d, states[i] = direction(tx, params, batch, states[i])
            assert_close(d, expected)


@pytest.mark.nightly_except("bfloat16-*")
@injected
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_injected_methods_keep_the_structure_of_their_state(case, scalar, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, batch = tanh_net(dtype)
        tx = optax.chain(inject(case, **{scalar: ramp}), optax.sgd(0.1))
        carry = params, tx.init(params)
        assert avals(jax.eval_shape(training_step(tx), carry, batch)[0]) == avals(carry)


@pytest.mark.parametrize(
    ("case", "argument"),
    [
        pytest.param(case, argument, id=f"{case.name}-{argument}")
        for case in CASES
        for argument in ("hvp", "ascent_hvp")
        if argument in signature(case)
    ],
)
def test_hvp_can_be_a_static_argument_of_inject_hyperparams(case, argument):
    params, batch = tanh_net()
    hvp = {argument: flatreg.finite_difference_hvp(0.3)}
    d, _ = direction(inject(case, **hvp), params, batch)
    assert_close(d, direction(case.make(**hvp), params, batch)[0])
    assert optax.tree.norm(optax.tree.sub(d, direction(case.make(), params, batch)[0])) > 1e-4


@pytest.mark.parametrize("ord", [1, 1.5, 2, 3])
def test_order_of_the_norm_can_be_injected(ord):
    params, batch = tanh_net()
    tx = optax.inject_hyperparams(flatreg.gradient_norm_penalty)(penalty=0.1, ord=ord)
    state = tx.init(params)
    d, _ = jax.jit(lambda state: direction(tx, params, batch, state))(state)
    assert_close(d, direction(flatreg.gradient_norm_penalty(0.1, ord=ord), params, batch)[0])
    if ord != 2:
        state.hyperparams["ord"] = jnp.asarray(2.0)
        d, _ = direction(tx, params, batch, state)
        assert_close(d, direction(flatreg.gradient_norm_penalty(0.1), params, batch)[0])


FREEZE_BIAS = {"hidden": {"kernel": False, "bias": True}, "out": False}


@pytest.mark.parametrize(
    "base",
    [
        optax.freeze(FREEZE_BIAS),
        optax.selective_transform(optax.adam(0.1), freeze_mask=FREEZE_BIAS),
        optax.masked(optax.add_decayed_weights(0.1), FREEZE_BIAS),
        optax.partition({True: optax.set_to_zero(), False: optax.sgd(0.1)}, FREEZE_BIAS),
        optax.flatten(optax.adam(0.1)),
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        optax.adaptive_grad_clip(0.1),
        optax.adamw(0.1),
        optax.lamb(0.1),
        optax.adafactor(0.1),
        optax.contrib.schedule_free_sgd(0.1),
        optax.contrib.muon(0.1),
    ],
    ids=lambda base: base.update.__qualname__.partition(".")[0],
)
def test_any_optimizer_after_the_method_gets_its_direction(base):
    params, batch = tanh_net()
    d, _ = direction(flatreg.sam(0.3), params, batch)
    updates, _ = direction(optax.chain(flatreg.sam(0.3), base), params, batch)
    assert_equal(updates, base.update(d, base.init(params), params)[0])


@pytest.mark.parametrize("base", [optax.polyak_sgd(), optax.contrib.reduce_on_plateau()])
def test_other_links_get_their_extra_arguments(base):
    params, batch = tanh_net()
    loss, g, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, batch)
    tx = optax.chain(flatreg.sam(0.3), base)
    updates, _ = tx.update(g, tx.init(params), params, grad_fn=grad_fn, value=loss)
    d, _ = direction(flatreg.sam(0.3), params, batch)
    assert_equal(updates, base.update(d, base.init(params), params, value=loss)[0])


@pytest.mark.parametrize(
    "link",
    [
        lipschitz.project_spectral_norm(1.0),
        lipschitz.project_spectral_norm(1.0, norm="upper_bound"),
        lipschitz.project_norm(1, 1.0),
        lipschitz.spectral_norm_penalty(0.1, jax.random.key(0)),
        lipschitz.orthogonality_penalty(0.1),
    ],
    ids=["power", "upper_bound", "induced", "spectral", "orthogonal"],
)
def test_map_params_passes_over_links_of_lipschitz(link):
    """``optax.tree_map_params`` changes the momentum and leaves the power iteration alone."""
    params = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    tx = optax.chain(link, optax.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    first, last = optax.tree_map_params(tx, lambda x: x + 1, state)
    assert_equal(first, state[0])
    assert_equal(optax.tree.get(last, "trace"), optax.tree.ones_like(params))
