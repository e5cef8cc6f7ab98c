"""A NaN or infinity in any pass of an NNX step skips the step; the loss scale follows Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_train_step
from tests.support.networks.nnx_models import Plain, arrays, in_both_modes
from tests.support.steps import chain, examples


class Cliff(nnx.Module):
    """The function −√(limit − w), whose gradient is NaN for w > limit; it counts its calls."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(()))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.rngs = nnx.Rngs(noise=0)

    def __call__(self, limit):
        self.calls[...] += 1
        self.rngs.noise()
        return -jnp.sqrt(limit - self.w[...])


def cliff_loss(model, limit):
    return jnp.mean(model(limit))


FAR, NEAR, PASSED = jnp.full(4, 9.0), jnp.full(4, 1.2), jnp.full(4, 0.5)
METHODS = {
    "sam": flatreg.sam(0.5),
    "penalized_gradient": flatreg.penalized_gradient(0.5),
    "gradient_norm_penalty": flatreg.gradient_norm_penalty(
        0.1, hvp=flatreg.finite_difference_hvp(0.5)
    ),
    "gam": flatreg.gam(0.5, 1.0),
    "gam_accelerated": flatreg.gam_accelerated(rho=0.1, rho_prime=0.5),
    "per_shard": flatreg.per_shard(flatreg.sam(0.5)),
}


@pytest.mark.nightly_except("sam-*-graph", "gam-perturbed_pass-graph")
@in_both_modes
@pytest.mark.parametrize("limit", [NEAR, PASSED], ids=["perturbed_pass", "every_pass"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_not_finite_is_skipped(name, limit, mode):
    """Only the counters and the dropout count change, and the next step trains as usual.

    With the limit NEAR the clean pass is finite and the perturbed passes are not.
    """
    step = nnx.jit(make_train_step(cliff_loss, shards=2 if name == "per_shard" else 1), **mode)

    def run(*limits):
        model = Cliff()
        optimizer = Optimizer(model, chain(METHODS[name]), wrt=nnx.Param, **mode)
        return model, optimizer, [step(model, optimizer, limit) for limit in limits]

    model, optimizer, metrics = run(FAR, limit, FAR)
    expected, expected_optimizer, _ = run(FAR, FAR)
    assert [bool(m["skipped"]) for m in metrics] == [False, True, False]
    assert np.isfinite(metrics[1]["loss"]) == (limit is NEAR)
    for kind in (nnx.Param, nnx.Not(nnx.RngState)):
        np.testing.assert_array_equal(arrays(model, kind), arrays(expected, kind))
    for actual, right in zip(
        arrays(optimizer.opt_state), arrays(expected_optimizer.opt_state), strict=True
    ):
        np.testing.assert_array_equal(actual, right)
    assert model.calls[...] == 2
    assert model.rngs.noise.count[...] == 3  # so that the next step draws a new mask
    assert (optimizer.step[...], optimizer.skipped[...]) == (3, 1)


def test_a_bad_clean_loss_skips_even_if_its_gradient_is_unused():
    """At w = 1 the loss is NaN, and at all other points it is w."""

    def hole_loss(model, limit):
        return jnp.where(model.w[...] == limit[0], jnp.nan, model.w[...])

    for limit, skipped in ((1.0, True), (2.0, False)):
        model = Cliff()
        tx = chain(flatreg.perturbed_gradient(jax.random.key(0), 0.1))
        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        metrics = nnx.jit(make_train_step(hole_loss))(model, optimizer, jnp.full((1,), limit))
        assert metrics["skipped"] == skipped
        assert (model.w[...] == 1) == skipped


def test_without_skipping_only_the_chain_s_own_test_skips():
    step = nnx.jit(make_train_step(cliff_loss, skip_nonfinite=False))
    for base, is_skipped in (
        (optax.sgd(0.1), False),
        (optax.apply_if_finite(optax.sgd(0.1), 5), True),
    ):
        model = Cliff()
        optimizer = Optimizer(model, optax.chain(flatreg.sam(0.5), base), wrt=nnx.Param)
        metrics = step(model, optimizer, NEAR)
        assert metrics["skipped"] == is_skipped
        assert np.isnan(model.w[...]) != is_skipped
        assert (optimizer.step[...], optimizer.skipped[...]) == (1, is_skipped)
        assert model.calls[...] == 1 - is_skipped


def test_without_skipping_there_must_be_no_loss_scale():
    model = Cliff()
    optimizer = Optimizer(
        model, chain(flatreg.sam(0.5)), wrt=nnx.Param, dynamic_scale=DynamicScale()
    )
    with pytest.raises(ValueError, match="skip_nonfinite=False cannot be used with a loss scale"):
        make_train_step(cliff_loss, skip_nonfinite=False)(model, optimizer, NEAR)


def test_flax_s_own_optimizer_skips_without_counting():
    model = Cliff()
    optimizer = nnx.Optimizer(model, chain(flatreg.sam(0.5)), wrt=nnx.Param)
    metrics = nnx.jit(make_train_step(cliff_loss))(model, optimizer, NEAR)
    assert metrics["skipped"]
    assert model.w[...] == 1
    assert not hasattr(optimizer, "skipped")


class Square(nnx.Module):
    """The function w²x² in float16, with a float32 weight w."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return jnp.square(self.w[...].astype(jnp.float16) * x)


def square_loss(model, x):
    return jnp.mean(model(x))


@in_both_modes
def test_an_overflow_in_the_perturbed_pass_lowers_the_scale(mode):
    """In float16, 2·3·2¹⁴ overflows; 2·1·2¹⁴ and 2·3·2¹³ do not.

    The unscaled gradient of the perturbed pass is 2·(1 + 2).
    """
    model = Square()
    tx = optax.chain(flatreg.sam(2.0), optax.sgd(0.125))
    scale = DynamicScale(scale=2.0**14)
    optimizer = Optimizer(model, tx, wrt=nnx.Param, dynamic_scale=scale, **mode)
    step = nnx.jit(make_train_step(square_loss), **mode)
    seen = []
    for _ in range(2):
        metrics = step(model, optimizer, jnp.ones(1, jnp.float16))
        scale = optimizer.dynamic_scale
        seen.append((bool(metrics["skipped"]), float(scale.scale[...]), int(scale.fin_steps[...])))
        assert metrics["loss"] == 1
        assert model.w[...] == (1.0 if metrics["skipped"] else 1 - 0.125 * 6)
        assert model.w[...].dtype == jnp.float32
    assert seen == [(True, 2.0**13, 0), (False, 2.0**13, 1)]
    assert optimizer.skipped[...] == 1


def test_without_a_method_scale_and_weights_follow_flax():
    """The reference is ``DynamicScale.value_and_grad``."""
    flax_scale = DynamicScale(scale=2.0**14, growth_interval=2)
    model, w = Square(), jnp.ones(())
    optimizer = Optimizer(model, optax.sgd(1e-3), wrt=nnx.Param, dynamic_scale=flax_scale)
    step = nnx.jit(make_train_step(square_loss))

    @jax.jit
    def flax_step(scale, w, x):
        loss = lambda w: jnp.mean(jnp.square(w.astype(jnp.float16) * x))  # noqa: E731
        scale, finite, _, grad = scale.value_and_grad(loss)(w)
        return scale, jnp.where(finite, w - 1e-3 * grad, w)

    scales = []
    for x in [8, 8] + [1] * 16:
        batch = jnp.full(1, x, jnp.float16)
        step(model, optimizer, batch)
        flax_scale, w = flax_step(flax_scale, w, batch)
        np.testing.assert_allclose(model.w[...], w, rtol=1e-6)
        assert optimizer.dynamic_scale.scale[...] == flax_scale.scale
        assert optimizer.dynamic_scale.fin_steps[...] == flax_scale.fin_steps
        scales.append(float(flax_scale.scale))
    assert min(scales) < 2**14 < max(scales)


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@in_both_modes
def test_float16_trains_like_float32(mode):
    """Every pass is scaled and unscaled, including Hessian-vector products and shards."""
    for method, shards in (
        (flatreg.combine(flatreg.sam(0.1), flatreg.gam(0.1, 0.5)), 1),
        (flatreg.per_shard(flatreg.penalized_gradient(0.1, 0.5)), 2),
    ):
        ends = []
        for dtype, scale in ((jnp.float32, None), (jnp.float16, DynamicScale(scale=256.0))):
            model = Plain(nnx.Rngs(0), dtype)
            optimizer = Optimizer(model, chain(method), wrt=nnx.Param, dynamic_scale=scale, **mode)
            step = nnx.jit(make_train_step(classification_loss, shards=shards), **mode)
            for _ in range(5):
                assert not step(model, optimizer, examples())["skipped"]
            ends.append(arrays(model))
        for single, half in zip(*ends, strict=True):
            np.testing.assert_allclose(half, single, atol=5e-3)


@pytest.mark.slow
@pytest.mark.nightly_except("graph")
@in_both_modes
def test_bfloat16_computes_with_float32_parameters(mode):
    ends = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = Plain(nnx.Rngs(0), dtype)
        optimizer = Optimizer(model, chain(flatreg.sam(0.1)), wrt=nnx.Param, **mode)
        step = nnx.jit(make_train_step(classification_loss), **mode)
        for _ in range(5):
            metrics = step(model, optimizer, examples())
        assert metrics["loss"].dtype == jnp.float32
        ends.append(arrays(model))
        assert {x.dtype for x in ends[-1] + arrays(optimizer, nnx.OptArray)} <= {
            jnp.dtype("float32")
        }
    for single, half in zip(*ends, strict=True):
        np.testing.assert_allclose(half, single, atol=3e-2)
