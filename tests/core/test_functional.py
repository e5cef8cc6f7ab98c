"""Functional-SAM's oracle: J_F(θ′)ᵀ ∇ℓ(F(θ)), compared with dense Jacobians in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatreg
from tests.support.cases import CASES
from tests.support.losses import draw, flat

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
RHO = 0.3
PLAIN = {"sam", "gam", "gam_accelerated", "gradient_norm_penalty_2", "looksam"}

pytestmark = pytest.mark.usefixtures("x64")


def parameters():
    return {"hidden": draw(0, 3, 4), "out": draw(2, 4, 2)}


def batch(count=8):
    return draw(4, count, 3), jnp.arange(count) % 2


def network(params, batch, key=None):
    """Logits, and the sum of the inputs as an integer, which does not have a gradient."""
    x, _ = batch
    if key is not None:
        x = x + jax.random.uniform(key, x.shape)
    logits = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return {"logits": logits, "count": jnp.int32(len(x))}


def loss_of(outputs, batch, key=None):
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch[1])
    return losses.mean(), {"mean": outputs["logits"].mean(), "count": outputs["count"]}


def functional_gradient(points, batch, key=None):
    """J_F(θ′)ᵀ ∇ℓ(F(θ)) for points (θ′, θ), from a dense Jacobian."""
    elsewhere, params = points
    logits = lambda params: network(params, batch, key)["logits"]  # noqa: E731
    outer = jax.grad(lambda x: loss_of({"logits": x, "count": 0}, batch)[0])(logits(params))
    jacobian = jax.jacobian(logits)(elsewhere)
    return jax.tree.map(lambda j: jnp.tensordot(outer, j, outer.ndim), jacobian)


def true_gradient(params, batch, key=None):
    return jax.grad(lambda params: loss_of(network(params, batch, key), batch)[0])(params)


def evaluated(*args, **options):
    evaluate = flatreg.functional_value_and_grad_fn(network, loss_of, has_aux=True, **options)
    return evaluate(parameters(), *args)


def strides(batch, count):
    return [jax.tree.map(lambda x, i=i: x[i::count], batch) for i in range(count)]


def blocks(batch, count):
    size = len(batch[1]) // count
    return [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], batch) for i in range(count)]


def mean(trees):
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)


def assert_same(actual, expected):
    np.testing.assert_allclose(flat(actual), flat(expected), **CLOSE)


@pytest.mark.nightly_except("4")
@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_oracle_is_the_jacobian_times_the_outer_gradient(microbatches):
    params, key = parameters(), jax.random.key(3)
    (value, aux), grads, grad_fn = evaluated(batch(), key, key_argnums=2, microbatches=microbatches)
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    parts = [(batch(), key)]
    if microbatches == 4:
        parts = list(zip(strides(batch(), 4), keys, strict=True))
    losses = [loss_of(network(params, *part), part[0])[0] for part in parts]
    np.testing.assert_allclose(value, np.mean(losses), **CLOSE)
    assert_same(grads, mean([true_gradient(params, *part) for part in parts]))
    assert_same(grad_fn(params), grads)
    elsewhere = jax.tree.map(jnp.sin, params)
    expected = mean([functional_gradient((elsewhere, params), *part) for part in parts])
    assert_same(jax.jit(grad_fn)(elsewhere), expected)
    assert optax.tree.norm(optax.tree.sub(expected, true_gradient(elsewhere, *parts[0]))) > 1e-3
    assert aux["count"] == 8 // microbatches


@pytest.mark.nightly_except("sam", "gam")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.nightly] * (case.name not in PLAIN))
        for case in CASES
    ],
)
def test_every_method_works_with_it_unchanged(case):
    """The method descends its surrogate of the loss ⟨∇ℓ(F(θ)), F(θ′)⟩, a function of θ′."""
    params = parameters()
    _, unravel = jax.flatten_util.ravel_pytree(params)
    _, grads, grad_fn = evaluated(batch())
    logits = network(params, batch())["logits"]
    outer = jax.grad(lambda x: loss_of({"logits": x, "count": 0}, batch())[0])(logits)
    linear = lambda w: jnp.sum(outer * network(unravel(w), batch())["logits"])  # noqa: E731
    expected = jax.grad(lambda w: case.surrogate(linear, w))(flat(params))
    method = case.make()
    d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(flat(d), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_each_shard_has_its_own_perturbation(microbatches):
    params, method = parameters(), flatreg.per_shard(flatreg.sam(RHO))
    _, grads, grad_fn = evaluated(batch(), shards=2, microbatches=microbatches)
    d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
    directions = []
    for shard in blocks(batch(), 2):
        g = true_gradient(params, shard)
        worst = optax.tree.add_scale(params, RHO / optax.tree.norm(g), g)
        directions.append(functional_gradient((worst, params), shard))
    assert_same(d, mean(directions))
    assert_same(grads, true_gradient(params, batch()))


@pytest.mark.parametrize("check_vma", [True, False])
def test_devices_average_the_gradient_but_not_the_cotangent(check_vma):
    params = parameters()
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])

    def direction(params, batch):
        (value, aux), grads, grad_fn = evaluated_on(params, batch)
        method = flatreg.sam(RHO)
        d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
        return value, aux["mean"], grads, d

    evaluated_on = flatreg.functional_value_and_grad_fn(
        network, loss_of, has_aux=True, axis_name="data"
    )
    specs = {"in_specs": (P(), P("data")), "out_specs": P(), "check_vma": check_vma}
    value, average, grads, d = jax.jit(jax.shard_map(direction, mesh=mesh, **specs))(
        params, batch()
    )
    (loss, aux), g, grad_fn = evaluated(batch())
    np.testing.assert_allclose([value, average], [loss, aux["mean"]], **CLOSE)
    assert_same(grads, g)
    assert_same(d, grad_fn(optax.tree.add_scale(params, RHO / optax.tree.norm(g), g)))


def test_a_step_costs_two_gradients():
    """XLA's count: the outputs at θ are not computed again."""
    with jax.enable_x64(False):
        params, data = {"hidden": draw(0, 64, 64), "out": draw(1, 64, 8)}, (draw(2, 256, 64),)
        data = (*data, jnp.arange(256) % 8)
        evaluate = flatreg.functional_value_and_grad_fn(network, loss_of, has_aux=True)

        def flops(function):
            return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

        def step(params):
            out, grads, grad_fn = evaluate(params, data)
            method = flatreg.sam(RHO)
            return out, method.update(grads, method.init(params), params, grad_fn=grad_fn)[0]

        assert flops(step) <= 2.05 * flops(functools.partial(true_gradient, batch=data))


def test_wrong_losses_and_parameters_raise():
    evaluate = flatreg.functional_value_and_grad_fn(network, loss_of)
    with pytest.raises(TypeError, match=r"functional_value_and_grad_fn\(.*has_aux=True"):
        evaluate(parameters(), batch())
    with pytest.raises(TypeError, match="floating-point parameters"):
        flatreg.functional_value_and_grad_fn(network, loss_of)(
            {"hidden": jnp.ones(2, int)}, batch()
        )
    with pytest.raises(ValueError, match="cannot be split equally into 3"):
        evaluated(batch(), microbatches=3)
    with pytest.raises(ValueError, match="microbatches must be a whole number"):
        flatreg.functional_value_and_grad_fn(network, loss_of, microbatches=0)
