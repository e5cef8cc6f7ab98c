"""A NaN or infinity in any pass of a Linen step skips the step; the loss scale follows Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import flatreg
from flatreg.linen import classification_loss, make_train_step
from tests.support.assertions import assert_close, assert_equal
from tests.support.cases import CASES
from tests.support.networks.linen_models import Plain, state_of, trained
from tests.support.steps import chain, examples

PERTURBED = [case for case in CASES if not case.name.startswith("gradient_")]


class Line(nn.Module):
    """A linear function with a statistic that every training pass updates."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        if train:
            mean.value += x.mean()
        return nn.Dense(1, use_bias=False)(x)[:, 0]


def trapped(apply, batch, train):
    """Least squares, plus a term with gradient `trap` everywhere except where the step begins."""
    x, y, begin, trap = batch
    weights = apply.variables["params"]["Dense_0"]["kernel"]
    moved = jnp.any(weights != begin)
    penalty = jnp.sum(weights.astype(trap.dtype) * jnp.where(moved, trap, 0))
    return jnp.mean((apply(x, train=train) - y) ** 2) + penalty


def batch_for(state, trap):
    x, _ = examples()
    return x, x[:, 0] ** 2, jnp.copy(state.params["Dense_0"]["kernel"]), jnp.asarray(trap)


def assert_same_but_counters(actual, expected, skipped):
    assert actual.step == expected.step + skipped
    assert actual.skipped == expected.skipped + skipped
    counters = {"step": 0, "skipped": 0, "dynamic_scale": None}
    assert_equal(actual.replace(**counters), expected.replace(**counters))


@pytest.mark.nightly_except("sam-nan", "gam-nan", "perturbed_gradient-nan")
@pytest.mark.parametrize(
    ("case", "trap"),
    [*((case, jnp.nan) for case in PERTURBED), (PERTURBED[0], jnp.inf), (PERTURBED[0], -jnp.inf)],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_a_bad_perturbed_pass_skips_the_step(case, trap):
    """The state keeps its values except for the counters, and the next step trains as usual."""
    state = state_of(Line(), optax.chain(case.make(), optax.adam(0.01)), examples()[0])
    step = jax.jit(make_train_step(trapped))
    state, metrics = step(state, batch_for(state, 0.0))
    assert not metrics["skipped"]
    stuck, metrics = step(state, batch_for(state, trap))
    assert metrics["skipped"]
    assert np.isfinite(metrics["loss"])  # the loss of the clean pass
    assert_same_but_counters(stuck, state, skipped=1)
    onward, metrics = step(stuck, batch_for(stuck, 0.0))
    assert not metrics["skipped"]
    assert_equal(onward.params, step(state, batch_for(state, 0.0))[0].params)
    assert (onward.step, onward.skipped) == (3, 1)
    assert onward.batch_stats["mean"] > state.batch_stats["mean"]


def test_a_bad_hessian_skips_the_step():
    """At 0, |w|^1.5 has gradient 0 and infinite curvature."""

    def cusp(apply, batch, train):
        weights = apply.variables["params"]["Dense_0"]["kernel"]
        return jnp.mean((apply(batch, train=train) - 1) ** 2) + jnp.sum(jnp.abs(weights) ** 1.5)

    x, _ = examples()
    state = state_of(Line(), chain(flatreg.gradient_regularization(0.1)), x)
    state = state.replace(params=optax.tree.zeros_like(state.params))
    new, metrics = jax.jit(make_train_step(cusp))(state, x)
    assert metrics["skipped"]
    assert_same_but_counters(new, state, skipped=1)


@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"shards": 2}], ids=str)
def test_one_bad_example_skips_the_step_despite_clipping(options):
    """The last example gives NaN in the perturbed pass only, inside ``every``, before a clip."""
    method = flatreg.every(flatreg.sam(0.3), 2)

    def fragile(apply, batch, train):
        x, begin, trap = batch
        weights = apply.variables["params"]["Dense_0"]["kernel"]
        penalty = jnp.where(jnp.any(weights != begin[0]), trap, 0).sum() * weights.sum()
        return jnp.mean((apply(x, train=train) - 1) ** 2) + penalty

    x, _ = examples()
    method = flatreg.per_shard(method) if "shards" in options else method
    state = state_of(Line(), optax.chain(method, optax.clip_by_global_norm(1.0), optax.sgd(0.1)), x)
    begin = jnp.broadcast_to(state.params["Dense_0"]["kernel"], (16, 4, 1))
    for trap in (0.0, jnp.nan):
        batch = x, begin, jnp.zeros(16).at[-1].set(trap)
        _, metrics = jax.jit(make_train_step(fragile, **options))(state, batch)
        assert metrics["skipped"] == np.isnan(trap)


LATER_TRANSFORMATIONS = {
    "clip": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "clip_by_global_norm": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "MultiSteps, skipping": lambda: optax.MultiSteps(
        optax.adam(0.1), 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    # These two hide the NaN in the updates, but their accumulators hold it.
    "MultiSteps, inner": lambda: optax.MultiSteps(
        optax.apply_if_finite(optax.sgd(0.1), 3), 2
    ).gradient_transformation(),
    "apply_every": lambda: optax.chain(optax.apply_every(2), optax.zero_nans(), optax.sgd(0.1)),
}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("passes", ["clean", "perturbed"])
@pytest.mark.parametrize("name", LATER_TRANSFORMATIONS)
def test_no_later_transformation_hides_a_bad_pass(name, passes, bad):
    """The transformations clip gradients, accumulate them, or skip bad ones themselves."""
    method = {"clean": optax.identity(), "perturbed": flatreg.sam(0.3)}[passes]
    state = state_of(Line(), optax.chain(method, LATER_TRANSFORMATIONS[name]()), examples()[0])
    good = jax.tree.map(jnp.ones_like, state.params)
    broken = jax.tree.map(lambda g: g.at[0].set(bad), good)
    grads = broken if passes == "clean" else good
    options = {"grads": grads, "grad_fn": lambda _: broken, "batch_stats": {"mean": jnp.ones(())}}
    step = jax.jit(lambda state: state.apply_gradients(**options))
    assert_same_but_counters(step(state), state, skipped=1)


class TestWithoutSkipping:
    """With ``skip_nonfinite=False``."""

    def run(self, tx, trap, **options):
        state = state_of(Line(), tx, examples()[0])
        step = jax.jit(make_train_step(trapped, **options))
        return (state, *step(state, batch_for(state, trap)))

    def test_a_finite_step_is_the_same(self):
        tx = optax.chain(flatreg.sam(0.3), optax.adam(0.01))
        _, expected, metrics = self.run(tx, 0.0)
        _, new, without = self.run(tx, 0.0, skip_nonfinite=False)
        for part in ("params", "opt_state", "batch_stats", "step", "skipped"):
            assert_close(getattr(new, part), getattr(expected, part), 1e-6)
        assert_close(without, metrics, 1e-6)

    def test_a_nan_reaches_the_parameters(self):
        tx = optax.chain(flatreg.sam(0.3), optax.sgd(0.01))
        state, new, metrics = self.run(tx, jnp.nan, skip_nonfinite=False)
        assert np.isnan(new.params["Dense_0"]["kernel"]).all()
        assert not metrics["skipped"]
        assert new.skipped == 0
        assert new.batch_stats["mean"] != state.batch_stats["mean"]

    def test_the_chain_s_own_test_is_counted(self):
        tx = optax.chain(flatreg.sam(0.3), optax.apply_if_finite(optax.adam(0.01), 5))
        state, new, metrics = self.run(tx, jnp.nan, skip_nonfinite=False)
        assert metrics["skipped"]
        assert new.skipped == 1
        assert_equal((new.params, new.batch_stats), (state.params, state.batch_stats))
        assert optax.tree.get(new.opt_state, "notfinite_count") == 1

    def test_it_cannot_be_used_with_a_loss_scale(self):
        tx, scale = chain(flatreg.sam(0.3)), DynamicScale()
        state = state_of(Line(), tx, examples()[0], dynamic_scale=scale)
        with pytest.raises(ValueError, match="skip_nonfinite=False cannot be used with a loss"):
            make_train_step(trapped, skip_nonfinite=False)(state, batch_for(state, 0.0))


def test_a_bad_clean_loss_skips_even_if_its_gradient_is_unused():
    """Its statistics must not be kept. ``perturbed_gradient`` does not use the clean gradient."""

    def jumping(apply, batch, train):
        x, y, begin, trap = batch
        moved = jnp.any(apply.variables["params"]["Dense_0"]["kernel"] != begin)
        return jnp.mean((apply(x, train=train) - y) ** 2) + jnp.where(moved, 0, trap)

    method = flatreg.perturbed_gradient(jax.random.key(0), 0.1)
    state = state_of(Line(), chain(method), examples()[0])
    for trap in (0.0, jnp.nan, jnp.inf):
        new, metrics = jax.jit(make_train_step(jumping))(state, batch_for(state, trap))
        assert metrics["skipped"] == (not np.isfinite(trap))
    assert_same_but_counters(new, state, skipped=1)


def scaled(case_or_tx, scale, **fields):
    return state_of(
        Plain(), case_or_tx, examples()[0], dynamic_scale=DynamicScale(scale=scale, **fields)
    )


@pytest.mark.nightly_except("per_shard")
@pytest.mark.parametrize("name", ["gam", "per_shard"])
def test_a_power_of_two_as_loss_scale_is_exact_in_float32(name):
    case = {case.name: case for case in CASES}.get(name)
    # Unlike SAM, this method uses the length of the clean gradient of each shard.
    method = case.make() if case else flatreg.per_shard(flatreg.penalized_gradient(0.3, 0.5))
    step = jax.jit(make_train_step(classification_loss, shards=1 if case else 2))
    batches = [examples(seed=seed) for seed in range(3)]
    tx = chain(method)
    plain = trained(step, state_of(Plain(), tx, batches[0][0]), batches)
    under_scale = trained(step, scaled(tx, 2.0**10), batches)
    assert_close(under_scale.params, plain.params, 1e-6)
    assert_close(under_scale.opt_state, plain.opt_state, 1e-6)
    assert under_scale.dynamic_scale.fin_steps == 3
    _, metrics = step(plain, batches[0])
    _, unscaled = step(plain.replace(dynamic_scale=under_scale.dynamic_scale), batches[0])
    assert_close(unscaled, metrics, 1e-6)


def test_an_overflow_in_the_perturbed_pass_lowers_the_scale():
    """The perturbed pass has a float16 gradient of 60,000, which is finite only at a scale of 1."""
    state = state_of(
        Line(), chain(flatreg.sam(0.3)), examples()[0], dynamic_scale=DynamicScale(scale=16.0)
    )
    step = jax.jit(make_train_step(trapped))
    scales, skipped = [], []
    for _ in range(6):
        state, metrics = step(state, batch_for(state, jnp.float16(6e4)))
        scales.append(float(state.dynamic_scale.scale))
        skipped.append(bool(metrics["skipped"]))
        assert np.isfinite(metrics["loss"])
    assert scales == [8, 4, 2, 1, 1, 1]
    assert skipped == [True] * 4 + [False] * 2
    assert (state.step, state.skipped) == (6, 4)


@pytest.mark.parametrize(
    ("start", "minimum"), [(64.0, None), (64.0, 4.0), (2.0**127, None)], ids=str
)
def test_the_loss_scale_follows_flax_s_rule(start, minimum):
    """The reference is ``DynamicScale.value_and_grad`` on a loss with the same infinities.

    A large scale grows to the largest float32 and not to infinity.
    """
    reference = DynamicScale(
        growth_factor=3.0,
        backoff_factor=0.25,
        growth_interval=2,
        scale=start,
        minimum_scale=minimum,
    )
    state = state_of(Plain(), optax.sgd(0.1), examples()[0], dynamic_scale=reference)
    follow = jax.jit(lambda ds, finite: ds.value_and_grad(lambda w: w * finite)(1.0)[0])
    apply = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for finite in [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]:
        factor = 1.0 if finite else jnp.inf
        reference = follow(reference, factor)
        grads = jax.tree.map(lambda w: jnp.full_like(w, factor), state.params)  # noqa: B023
        state = apply(state, grads)
        assert jnp.isfinite(state.dynamic_scale.scale)
        assert_close(
            (state.dynamic_scale.scale, state.dynamic_scale.fin_steps),
            (reference.scale, reference.fin_steps),
            0,
        )


def product_over(size, hvp):
    """A method that returns the gradient minus a product of the Hessian, both over ``size``."""

    def direction(grad_fn, params, g):
        wide, product = hvp(grad_fn, params)
        assert {x.dtype for x in jax.tree.leaves((g, wide))} == {jnp.dtype("float32")}
        ones = jax.tree.map(jnp.ones_like, params)
        return jax.tree.map(lambda g, hv: (g - hv) / size, g, product(ones))

    return flatreg.from_direction(direction)


@pytest.mark.nightly_except("reverse")
@pytest.mark.parametrize(
    ("hvp", "shards", "size", "scale"),
    [
        (flatreg.exact_hvp, 1, 1e-6, DynamicScale()),
        (flatreg.exact_hvp, 2, 1e-6, DynamicScale()),
        (flatreg.reverse_hvp, 1, 1.0, DynamicScale(scale=8.0)),  # It divides v by the scale.
    ],
    ids=["exact", "per_shard", "reverse"],
)
def test_gradients_of_float16_are_unscaled_in_float32(hvp, shards, size, scale):
    """With float16 parameters, at the default scale of 65,536, which float16 cannot hold.

    Gradients of 1e-7 are unscaled exactly in float32, and are 0 or off by half in float16.
    """
    batch = examples(jnp.float16)
    method = product_over(size, hvp)
    tx = optax.chain(flatreg.per_shard(method) if shards > 1 else method, optax.sgd(0.1))
    state = state_of(Plain(), tx, batch[0], dynamic_scale=scale)

    def small_loss(apply, batch, train):
        loss, metrics = classification_loss(apply, batch, train)
        return size * loss, metrics

    new, metrics = jax.jit(make_train_step(small_loss, shards=shards))(state, batch)
    assert not metrics["skipped"]
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), state.params)
    batch = batch[0].astype(jnp.float32), batch[1]

    def loss_fn(params):
        apply = lambda x, train: Plain().apply({"params": params}, x, train=train)  # noqa: E731
        return classification_loss(apply, batch, True)[0]

    g, hv = jax.jvp(jax.grad(loss_fn), (wide,), (jax.tree.map(jnp.ones_like, wide),))
    step = jax.tree.map(lambda x, y: x.astype(jnp.float32) - y, new.params, wide)
    expected = jax.tree.map(lambda g, hv: -0.1 * (g - hv), g, hv)
    for x, y in zip(jax.tree.leaves(step), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)


@pytest.mark.slow
def test_float16_and_bfloat16_train_float32_parameters():
    batch = examples()
    for dtype, scale in ((jnp.float16, DynamicScale()), (jnp.bfloat16, None)):
        state = state_of(Plain(dtype=dtype), chain(flatreg.sam()), batch[0], dynamic_scale=scale)
        step = jax.jit(make_train_step(classification_loss))
        losses = []
        for _ in range(50):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        assert losses[-1] < 0.8 * losses[0]
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        _, logits = state.apply_fn(
            state.variables,
            batch[0],
            train=False,
            capture_intermediates=True,
            mutable="intermediates",
        )
        assert {x.dtype for x in jax.tree.leaves(logits)} == {jnp.dtype(dtype)}
