"""The order of links in a chain: correct orders work, and wrong orders fail as documented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatreg
from tests.support.cases import CASES, every_case
from tests.support.problems import assert_close, assert_equal, direction, loss_fn, tanh_net

sam = flatreg.sam(0.3)
SHARDS = 4


def halves(batch):
    """The batch as two microbatches."""
    return [jax.tree.map(lambda x, i=i: x[8 * i : 8 * (i + 1)], batch) for i in range(2)]


def grad_on(batch):
    return lambda params: jax.grad(loss_fn)(params, batch)


def uphill(params, g, rho=0.3):
    """θ + ρg/‖g‖."""
    return optax.tree.add_scale(params, rho / optax.tree.norm(g), g)


class TestClip:
    """Clipping belongs after the method."""

    def test_clip_before_sam_has_no_effect(self):
        params, batch = tanh_net()
        d, _ = direction(optax.chain(optax.clip_by_global_norm(1e-3), sam), params, batch)
        assert_close(d, direction(sam, params, batch)[0])
        assert optax.tree.norm(d) > 1

    @pytest.mark.parametrize(  # stable_sam has the length of the clipped gradient
        "case", [c for c in CASES if c.name != "stable_sam"], ids=lambda case: case.name
    )
    def test_clip_before_a_method_does_not_bound_the_step(self, case):
        params, batch = tanh_net()
        tx = optax.chain(optax.clip_by_global_norm(1e-3), case.make())
        assert optax.tree.norm(direction(tx, params, batch)[0]) > 2e-3

    @every_case
    def test_clip_after_a_method_bounds_the_step(self, case):
        params, batch = tanh_net()
        d, _ = direction(case.make(), params, batch)
        tx = optax.chain(case.make(), optax.clip_by_global_norm(1e-3))
        clipped, _ = direction(tx, params, batch)
        assert_close(clipped, optax.tree.scale(1e-3 / optax.tree.norm(d), d))


class TestApplyIfFinite:
    """``apply_if_finite`` belongs around the optimizer after the method, not around the chain."""

    def step(self, tx):
        """A step at a point with a finite gradient. The loss is not defined beyond w = 1."""
        w, grad_fn = jnp.array([0.9, 0.9]), jax.grad(lambda w: -jnp.sum(jnp.sqrt(1 - w)))
        assert jnp.all(jnp.isfinite(grad_fn(w)))
        return tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)

    def test_apply_if_finite_after_sam_sees_the_perturbed_gradient(self):
        tx = optax.chain(sam, optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3))
        updates, state = self.step(tx)
        assert_equal(updates, jnp.zeros(2))
        assert optax.tree.get(state, "total_notfinite") == 1
        assert_equal(optax.tree.get(state, "trace"), jnp.zeros(2))

    @pytest.mark.parametrize(
        "tx",
        [
            optax.apply_if_finite(optax.chain(sam, optax.sgd(0.1, momentum=0.9)), 3),
            optax.chain(optax.apply_if_finite(optax.identity(), 3), sam, optax.sgd(0.1)),
        ],
        ids=["around", "before"],
    )
    def test_apply_if_finite_elsewhere_sees_only_the_clean_gradient(self, tx):
        updates, state = self.step(tx)
        assert jnp.all(jnp.isnan(updates))
        assert optax.tree.get(state, "total_notfinite") == 0


class TestAccumulation:
    """Gradients are accumulated by ``microbatches``, where both passes use the whole batch."""

    def accumulate(self, tx):
        (params, batch), updates = tanh_net(), None
        state = tx.init(params)
        for half in halves(batch):
            g = grad_on(half)(params)
            updates, state = tx.update(g, state, params, grad_fn=grad_on(half))
        return updates

    def test_multi_steps_around_a_method_is_wrong(self):
        """The averaged gradient meets the oracle of the last microbatch."""
        params, batch = tanh_net()
        tx = optax.MultiSteps(optax.chain(sam, optax.sgd(1.0)), 2).gradient_transformation()
        first, last = (grad_on(half) for half in halves(batch))
        g = optax.tree.scale(0.5, optax.tree.add(first(params), last(params)))
        wrong = optax.tree.scale(-1, last(uphill(params, g)))
        assert_close(self.accumulate(tx), wrong)
        right = direction(optax.chain(sam, optax.sgd(1.0)), params, batch)[0]
        assert optax.tree.norm(optax.tree.sub(wrong, right)) > 0.1

    def test_microbatches_give_the_step_of_the_whole_batch(self):
        params, batch = tanh_net()
        d, _ = direction(sam, params, batch, microbatches=2)
        whole = grad_on(batch)
        assert_close(d, whole(uphill(params, whole(params))))

    def test_multi_steps_after_a_method_averages_directions(self):
        """Each microbatch has its own perturbation."""
        params, batch = tanh_net()
        tx = optax.chain(sam, optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation())
        own = [grad_on(half)(uphill(params, grad_on(half)(params))) for half in halves(batch)]
        assert_close(self.accumulate(tx), optax.tree.scale(-0.5, optax.tree.add(*own)))


class TestMasks:
    """``scale`` restricts the perturbation; a mask after the method restricts the optimizer."""

    NO_BIAS = {"hidden": {"kernel": 1.0, "bias": 0.0}, "out": 1.0}  # noqa: RUF012

    @pytest.mark.parametrize(
        "wrong",
        [
            optax.masked(sam, NO_BIAS),
            optax.partition({1.0: sam, 0.0: optax.identity()}, NO_BIAS),
            optax.masked(optax.chain(sam, optax.sgd(0.1)), NO_BIAS),
        ],
        ids=["masked", "partition", "masked_chain"],
    )
    def test_a_mask_around_the_method_raises(self, wrong):
        with pytest.raises(ValueError, match="scale=lambda params"):
            direction(wrong, *tanh_net())

    def test_a_scale_of_zero_leaves_a_leaf_unperturbed(self):
        params, batch = tanh_net()
        d, _ = direction(flatreg.sam(0.3, scale=lambda params: self.NO_BIAS), params, batch)
        g = grad_on(batch)(params)
        without = optax.tree.mul(g, self.NO_BIAS)
        assert_close(d, grad_on(batch)(uphill(params, without)))

    def test_a_mask_after_the_method_freezes_the_masked_leaves(self):
        params, batch = tanh_net()
        freeze = jax.tree.map(lambda keep: not keep, self.NO_BIAS)
        updates, _ = direction(optax.chain(sam, optax.freeze(freeze)), params, batch)
        d, _ = direction(sam, params, batch)
        assert_equal(updates, {**d, "hidden": {**d["hidden"], "bias": jnp.zeros(8)}})

    def test_a_mask_before_the_method_has_no_effect(self):
        params, batch = tanh_net()
        freeze = jax.tree.map(lambda keep: not keep, self.NO_BIAS)
        updates, _ = direction(optax.chain(optax.freeze(freeze), sam), params, batch)
        assert jnp.all(updates["hidden"]["bias"] != 0)


@pytest.mark.parametrize("search", [optax.scale_by_zoom_linesearch(5), None])
def test_a_line_search_in_the_chain_rejects_the_oracle(search):
    params, batch = tanh_net()
    search = search or optax.scale_by_backtracking_linesearch(5)
    tx = optax.chain(sam, optax.sgd(0.1), search)
    loss = functools.partial(loss_fn, batch=batch)
    value, g = jax.value_and_grad(loss)(params)
    extra = {"grad_fn": jax.grad(loss), "value": value, "grad": g, "value_fn": loss}
    with pytest.raises(TypeError, match="grad_fn"):
        tx.update(g, tx.init(params), params, **extra)


METHODS_INSIDE = [
    sam,
    flatreg.every(sam, 2),
    flatreg.observe(flatreg.gam(0.1, 1.0)),
    flatreg.combine(sam, flatreg.perturbed_gradient(jax.random.key(0))),
]


class TestWrappersOfOptax:
    """Wrappers that change the parameters, but not the argument of the oracle, raise."""

    @pytest.mark.parametrize("method", METHODS_INSIDE, ids=["sam", "every", "observe", "combine"])
    @pytest.mark.parametrize("chained", [False, True], ids=["alone", "chain"])
    def test_flatten_around_a_method_shows_the_right_order(self, method, chained):
        tx = optax.flatten(optax.chain(method, optax.sgd(0.1)) if chained else method)
        with pytest.raises(TypeError, match=r"optax\.chain\(flatreg\.sam.*optax\.flatten\(optax"):
            direction(tx, *tanh_net())

    def test_flatten_of_one_vector_changes_nothing(self):
        """The oracle takes the same vector as the method."""
        w = jnp.ones(3)
        tx = optax.flatten(sam)
        d, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
        assert_close(d, w * (1 + 0.3 / 3**0.5))

    @pytest.mark.parametrize("method", METHODS_INSIDE, ids=["sam", "every", "observe", "combine"])
    def test_lookahead_after_a_method_shows_two_calls(self, method):
        params, batch = tanh_net()
        tx = optax.chain(method, optax.lookahead(optax.sgd(0.1), 5, 0.5))
        both = optax.LookaheadParams.init_synced(params)
        g, grad_fn = grad_on(batch)(params), grad_on(batch)
        with pytest.raises(
            ValueError, match=r"method\.update\(grads, state, params\.fast, grad_fn"
        ):
            tx.update(g, tx.init(both), both, grad_fn=grad_fn)

    def test_the_two_calls_give_lookahead_the_direction(self):
        params, batch = tanh_net()
        both, grad_fn = optax.LookaheadParams.init_synced(params), grad_on(batch)
        lookahead = optax.lookahead(optax.sgd(1.0), 5, 0.5)
        d, _ = sam.update(grad_fn(both.fast), sam.init(both.fast), both.fast, grad_fn=grad_fn)
        updates, _ = lookahead.update(d, lookahead.init(both), both)
        assert_close(updates.fast, optax.tree.scale(-1, direction(sam, params, batch)[0]))

    def test_a_scale_keeps_frozen_leaves_out_of_the_perturbation(self):
        """Leaves that are frozen after SAM still take part in its ascent, unless scaled out."""
        params, batch = tanh_net()
        mask = {"hidden": {"kernel": False, "bias": False}, "out": True}
        frozen = optax.partition({True: optax.set_to_zero(), False: optax.sgd(1.0)}, mask)
        seen = []

        def grad_fn(point):
            seen.append(float(jnp.linalg.norm(point["out"] - params["out"])))
            return grad_on(batch)(point)

        trained = flatreg.sam(0.3, scale=flatreg.on(lambda path: path != "out"))
        for method in (sam, trained):
            tx = optax.chain(method, frozen)
            updates, _ = tx.update(grad_on(batch)(params), tx.init(params), params, grad_fn=grad_fn)
            assert_equal(updates["out"], jnp.zeros(8))
        assert seen[0] > 0.1
        assert seen[1] == 0


class TestDevices:
    """m-sharpness is ``per_shard``. Inside ``shard_map`` it needs parameters that vary."""

    def on_devices(self, direction_on_device):
        devices = jax.devices()[:SHARDS]
        mesh = jax.make_mesh((SHARDS,), ("data",), (AxisType.Auto,), devices=devices)
        specs = {"in_specs": (P(), P("data")), "out_specs": P()}
        mapped = jax.shard_map(direction_on_device, mesh=mesh, **specs, check_vma=True)
        return jax.jit(mapped)(*tanh_net())

    def test_replicated_parameters_are_perturbed_as_one(self):
        """The direction is the sum over devices at one common perturbation."""
        d = self.on_devices(lambda params, batch: direction(sam, params, batch)[0])
        params, batch = tanh_net()
        as_one, _ = direction(sam, params, batch)
        assert_close(d, optax.tree.scale(SHARDS, as_one))

    def test_varying_parameters_give_the_same_as_per_shard(self):
        """Each device has its own perturbation, as with ``per_shard``."""

        def own(params, batch):
            params = jax.tree.map(lambda w: jax.lax.pcast(w, "data", to="varying"), params)
            return jax.lax.pmean(direction(sam, params, batch)[0], "data")

        params, batch = tanh_net()
        each, _ = direction(flatreg.per_shard(sam), params, batch, shards=SHARDS)
        assert_close(self.on_devices(own), each)
        as_one, _ = direction(sam, params, batch)
        assert optax.tree.norm(optax.tree.sub(each, as_one)) > 0.01

    def test_per_shard_is_the_mean_of_the_devices_directions(self):
        params, batch = tanh_net()
        shards = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * (i + 1)], batch) for i in range(SHARDS)]
        own = [grad_on(shard)(uphill(params, grad_on(shard)(params))) for shard in shards]
        mean = jax.tree.map(lambda *ds: np.mean(ds, axis=0), *own)
        each, _ = direction(flatreg.per_shard(sam), params, batch, shards=SHARDS)
        assert_close(each, mean)
