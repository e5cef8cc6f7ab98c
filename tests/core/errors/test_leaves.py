"""Leaves that are not floating-point arrays, and None in gradients, are named with a correction."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from tests.support.problems import METHODS, loss_fn, tanh_net

CORRECTION = (
    r"params, static = eqx\.partition\(model, eqx\.is_inexact_array\).*eqx\.combine\(params, static"
)
every_method = pytest.mark.parametrize("name", METHODS)
every_kind = pytest.mark.parametrize(
    "leaf", [jnp.tanh, "relu", object()], ids=["function", "text", "object"]
)


def with_leaf(leaf):
    params, batch = tanh_net()
    return params | {"activation": leaf}, batch


@every_method
@every_kind
def test_init_names_leaves_that_are_not_arrays(name, leaf):
    with pytest.raises(TypeError, match=rf"not: 'activation'\. .*{CORRECTION}"):
        METHODS[name]().init(with_leaf(leaf)[0])


@every_kind
@pytest.mark.parametrize("missing", [True, False], ids=["None", "same"])
def test_update_names_leaves_that_are_not_arrays(leaf, missing):
    """The gradient is None at the leaf, or contains it."""
    (params, _), tx = with_leaf(leaf), flatreg.sam()
    grads = params | {"activation": None} if missing else params
    with pytest.raises(TypeError, match=rf"not: 'activation'\. .*{CORRECTION}"):
        tx.update(grads, tx.init(tanh_net()[0]), params, grad_fn=lambda params: grads)


@every_kind
@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"shards": 2}], ids=repr)
def test_value_and_grad_fn_names_leaves_that_are_not_arrays(leaf, options):
    with pytest.raises(TypeError, match=rf"not: 'activation'\. .*{CORRECTION}"):
        flatreg.value_and_grad_fn(loss_fn, **options)(*with_leaf(leaf))


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [(jnp.arange(3), "int32"), (3, "int32"), (jnp.ones(2, bool), "bool"), (True, "bool")],
    ids=["integers", "number", "mask", "flag"],
)
def test_value_and_grad_fn_names_leaves_that_are_not_floating(leaf, dtype):
    text = rf"floating-point parameters.*'activation' \({dtype}\).*another argument.*{CORRECTION}"
    with pytest.raises(TypeError, match=text):
        flatreg.value_and_grad_fn(loss_fn)(*with_leaf(leaf))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "per_shard"])
def test_none_in_the_gradient_is_named(name):
    params, _ = tanh_net()
    tx = METHODS[name]()
    grads = params | {"hidden": params["hidden"] | {"bias": None}}
    _, _, grad_fn = flatreg.value_and_grad_fn(loss_fn)(*tanh_net())
    with pytest.raises(ValueError, match=rf"None at 'hidden/bias'.*{CORRECTION}"):
        tx.update(grads, tx.init(params), params, grad_fn=grad_fn)


@pytest.mark.parametrize("name", ["sam", "gam", "every", "observe", "gam_difference", "combine"])
def test_none_that_the_oracle_returns_is_named(name):
    params, _ = tanh_net()
    tx = METHODS[name]()
    with pytest.raises(TypeError, match=rf"None at 'out'.*{CORRECTION}"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p: p | {"out": None})


def test_none_in_parameters_and_gradient_is_accepted():
    """``eqx.partition`` leaves None where the static leaves were."""
    params, batch = tanh_net()
    params = params | {"activation": None}
    _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, batch)
    tx = optax.chain(flatreg.sam(), optax.sgd(0.1))
    updates, _ = tx.update(g, tx.init(params), params, grad_fn=grad_fn)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_numbers_are_parameters():
    value, g, grad_fn = flatreg.value_and_grad_fn(lambda p, b: p["w"] ** 2)({"w": 3.0}, None)
    d, _ = flatreg.sam(1.0).update(g, flatreg.sam(1.0).init(g), {"w": 3.0}, grad_fn=grad_fn)
    assert (value, d["w"]) == (9.0, 8.0)


def test_equinox_modules():
    """An unfiltered module raises, and the corrected call works."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, "scalar", 8, 1, key=jax.random.key(0))
    x = jnp.ones((2, 4))
    tx = flatreg.sam()
    with pytest.raises(TypeError, match=rf"'activation'.*{CORRECTION}"):
        tx.init(model)
    grads = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(x) ** 2))(model)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    with pytest.raises(TypeError, match=rf"'activation'.*{CORRECTION}"):
        tx.update(grads, tx.init(params), model, grad_fn=lambda model: grads)

    def loss_fn(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    with pytest.raises(TypeError, match=rf"'activation'.*{CORRECTION}"):
        flatreg.value_and_grad_fn(loss_fn)(model, x)
    _, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, x)
    tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
