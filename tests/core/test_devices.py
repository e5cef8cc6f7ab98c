"""``axis_name`` in ``pmap`` and ``shard_map``: every step equals the step on one device.

The checks run on eight CPU devices in float64. ``shard_map`` runs with and without ``check_vma``.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatreg
from tests.support.devices import DEVICES, SETTINGS, assert_each_device_has, mesh, on_devices
from tests.support.problems import loss_fn, tanh_net, training_step

HVPS = {
    "exact": flatreg.exact_hvp,
    "forward": flatreg.forward_hvp,
    "reverse": flatreg.reverse_hvp,
    "difference": flatreg.finite_difference_hvp(1e-3),
}
METHODS = {
    "sam": lambda: flatreg.sam(0.3),
    "penalized_gradient": lambda: flatreg.penalized_gradient(0.3, 0.8),
    "combine": lambda: flatreg.combine(flatreg.sam(0.3), flatreg.every(flatreg.gam(0.3, 0.5), 2)),
    **{
        f"penalty_{k}": lambda v=v: flatreg.gradient_norm_penalty(0.2, hvp=v)
        for k, v in HVPS.items()
    },
    **{f"gam_{k}": lambda v=v: flatreg.gam(0.3, 0.5, hvp=v) for k, v in HVPS.items()},
}
VARIANTS = ["sam", "penalized_gradient", "penalty_forward", "penalty_difference"]
VARIANTS += ["gam_exact", "gam_forward", "gam_difference"]
every_setting = pytest.mark.parametrize("setting", SETTINGS)
every_method = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in VARIANTS else [])
        for name in METHODS
    ],
)

pytestmark = pytest.mark.usefixtures("x64")


def problem():
    return tanh_net(jnp.float64)


@pytest.mark.nightly_except("shard_map-combine")
@every_method
@pytest.mark.parametrize("setting", [x for x in SETTINGS if x != "vmap"])
def test_two_steps_equal_those_on_one_device(setting, name):
    params, batch = problem()
    tx = optax.chain(METHODS[name](), optax.sgd(0.1, momentum=0.9))

    def two_steps(params, batch, **options):
        step = training_step(tx, **options)
        carry, first = step((params, tx.init(params)), batch)
        carry, second = step(carry, batch)
        return carry[0], first, second

    distributed = on_devices(setting, functools.partial(two_steps, axis_name="data"))
    assert_each_device_has(distributed(params, batch), jax.jit(two_steps)(params, batch))


@pytest.mark.nightly_except("shard_map-exact", "shard_map-difference", "vmap-exact")
@pytest.mark.parametrize("hvp", HVPS.values(), ids=HVPS)
@every_setting
def test_products_are_those_of_the_whole_batch(setting, hvp):
    """H v of the oracle, for one vector and for several under ``vmap``."""
    params, batch = problem()
    v = jax.tree.map(jnp.cos, params)
    evaluate = flatreg.value_and_grad_fn(loss_fn, axis_name="data")

    def products(params, batch):
        value, g, grad_fn = evaluate(params, batch)
        at, product = hvp(grad_fn, params)
        both = jax.vmap(product)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), v))
        return value, g, at, product(v), both

    g, hv = jax.jvp(lambda p: jax.grad(loss_fn)(p, batch), (params,), (v,))
    if hvp is HVPS["difference"]:
        hv = hvp(lambda p: jax.grad(loss_fn)(p, batch), params)[1](v)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), hv)
    expected = loss_fn(params, batch), g, g, hv, both
    assert_each_device_has(on_devices(setting, products)(params, batch), expected)


@pytest.mark.nightly_except("pmap-sam", "vmap-sam")
@pytest.mark.parametrize("method", ["sam", "gam_forward", "gam_reverse"])
@every_setting
def test_microbatches_equal_one_device(setting, method):
    params, batch = problem()
    tx = METHODS[method]()

    def d(params, batch, **options):
        _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
        return tx.update(g, tx.init(params), params, grad_fn=grad_fn)[0]

    divided = functools.partial(d, microbatches=2, axis_name="data")
    assert_each_device_has(on_devices(setting, divided)(params, batch), jax.jit(d)(params, batch))


@pytest.mark.parametrize("microbatches", [1, 2])
@every_setting
def test_aux_is_averaged_if_it_is_floating(setting, microbatches):
    """Counts stay the device's own. Statistics and metrics are those of the whole batch."""
    params, batch = problem()

    def with_aux(params, batch):
        x, _ = batch
        return loss_fn(params, batch), {"mean": x.mean(0), "examples": len(x), "key": None}

    def evaluate(params, batch):
        options = {"has_aux": True, "microbatches": microbatches, "axis_name": "data"}
        (value, aux), _, _ = flatreg.value_and_grad_fn(with_aux, **options)(params, batch)
        return value, aux

    value, aux = on_devices(setting, evaluate)(params, batch)
    assert_each_device_has(value, loss_fn(params, batch))
    assert_each_device_has(aux["mean"], batch[0].mean(0))
    assert_each_device_has(aux["examples"], 2 // microbatches)


@pytest.mark.nightly_except("shard_map-1")
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("setting", ["pmap", "shard_map"])
def test_keys_are_used_as_they_are_passed(setting, microbatches):
    """With ``fold_in(key, axis_index)`` each device draws its own noise, in every pass the same."""
    params, (x, y) = problem()
    key = jax.random.key(3)

    def noisy_loss(params, batch, key):
        x, y = batch
        return loss_fn(params, (x + jax.random.normal(key, x.shape, x.dtype), y))

    def evaluate(params, batch):
        own = jax.random.fold_in(key, jax.lax.axis_index("data"))
        options = {"key_argnums": 2, "microbatches": microbatches, "axis_name": "data"}
        value, g, grad_fn = flatreg.value_and_grad_fn(noisy_loss, **options)(params, batch, own)
        return value, g, grad_fn(params)

    def by_hand(params):
        values = []
        for i in range(DEVICES):
            own = jax.random.fold_in(key, i)
            for j in range(microbatches):
                part = jax.tree.map(lambda x: x[2 * i : 2 * i + 2][j::microbatches], (x, y))  # noqa: B023
                values.append(
                    noisy_loss(
                        params, part, jax.random.fold_in(own, j) if microbatches > 1 else own
                    )
                )
        return jnp.mean(jnp.stack(values))

    value, g = jax.jit(jax.value_and_grad(by_hand))(params)
    assert_each_device_has(on_devices(setting, evaluate)(params, (x, y)), (value, g, g))


@every_setting
def test_ascent_fraction_takes_a_part_of_each_device(setting):
    params, (x, y) = problem()
    options = {"ascent_fraction": 0.5, "axis_name": "data"}

    def evaluate(params, batch):
        _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
        return g, grad_fn(params)

    expected = tuple(jax.grad(loss_fn)(params, b) for b in ((x[::2], y[::2]), (x, y)))
    assert_each_device_has(on_devices(setting, evaluate)(params, (x, y)), expected)


@pytest.mark.slow
def test_several_axes_are_averaged_together():
    params, batch = problem()
    both = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))

    def products(params, batch):
        evaluate = flatreg.value_and_grad_fn(loss_fn, axis_name=("a", "b"))
        value, g, grad_fn = evaluate(params, batch)
        return value, g, *(hvp(grad_fn, params)[1](g) for hvp in list(HVPS.values())[:3])

    g = jax.grad(loss_fn)(params, batch)
    hg = flatreg.exact_hvp(lambda p: jax.grad(loss_fn)(p, batch), params)[1](g)
    for check_vma in (True, False):
        out = jax.jit(
            jax.shard_map(
                products,
                mesh=both,
                in_specs=(P(), P(("a", "b"))),
                out_specs=P(),
                check_vma=check_vma,
            )
        )(params, batch)
        assert_each_device_has(out, (loss_fn(params, batch), g, hg, hg, hg))


def test_results_are_replicated_for_shard_map():
    """With ``check_vma=True``, ``out_specs=P()`` accepts all results of a step."""
    params, batch = problem()
    tx = optax.chain(flatreg.gam(0.3, 0.5), optax.sgd(0.1))
    carry = params, tx.init(params)
    step = jax.jit(
        jax.shard_map(
            training_step(tx, axis_name="data"),
            mesh=mesh(),
            in_specs=(P(), P("data")),
            out_specs=P(),
        )
    )
    expected = jax.jit(training_step(tx))(carry, batch)
    assert_each_device_has(step(carry, batch), expected)


class TestErrors:
    """Errors of ``axis_name``."""

    @pytest.mark.parametrize("axis_name", [0, ["data"], (), ("data", 1), b"data"], ids=repr)
    def test_axis_name_must_be_a_string(self, axis_name):
        with pytest.raises(TypeError, match=r"axis_name must be a string.*axis_name='data'"):
            flatreg.value_and_grad_fn(loss_fn, axis_name=axis_name)

    def test_shards_and_axis_name_exclude_each_other(self):
        with pytest.raises(ValueError, match=r"shards and axis_name.*remove axis_name"):
            flatreg.value_and_grad_fn(loss_fn, axis_name="data", shards=2)

    @pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_axis_that_does_not_exist_raises(self, jit):
        evaluate = flatreg.value_and_grad_fn(loss_fn, axis_name="data")
        with pytest.raises(ValueError, match=r"axis_name='data'.*jax\.pmap.*leave axis_name out"):
            jit(lambda *args: evaluate(*args)[:2])(*problem())

    def test_parameters_that_vary_over_the_axis_raise(self):
        params, batch = problem()
        evaluate = flatreg.value_and_grad_fn(loss_fn, axis_name="data")

        def function(params, out, batch):
            return evaluate(params | {"out": out[0]}, batch)[0]

        mapped = jax.shard_map(
            function, mesh=mesh(), in_specs=(P(), P("data"), P("data")), out_specs=P()
        )
        with pytest.raises(ValueError, match=r"the same on all devices.*'out'.*in_specs=P\(\)"):
            mapped(params, jnp.stack([params["out"]] * DEVICES), batch)
