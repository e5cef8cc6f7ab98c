"""What wrappers reject, how a wrong order of the data shows, and the iterator helper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.problems import loss_fn, tanh_net

WRAPPERS = [flatreg.revisit, flatreg.previous_gradient_sam, flatreg.momentum_sam]
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
BASE = optax.sgd(0.1, momentum=0.9)


@every_wrapper
@pytest.mark.parametrize("base", [0.1, optax.sgd, "sgd"], ids=["rate", "factory", "name"])
def test_a_base_that_is_no_optimizer_raises(wrap, base):
    with pytest.raises(TypeError, match=rf"wraps an optimizer.*flatreg\.{wrap.__name__}\(optax"):
        wrap(base)


@every_wrapper
def test_wrong_radii_and_scales_raise(wrap):
    for rho in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="rho must be finite and at least 0"):
            wrap(BASE, rho)
    with pytest.raises(TypeError, match="rho must be a number"):
        wrap(BASE, "0.1")
    with pytest.raises(TypeError, match="scale must be a function params -> T"):
        wrap(BASE, scale=0.1)


@every_wrapper
def test_missing_parameters_and_wrong_gradients_raise(wrap):
    params, batch = tanh_net()
    tx, g = wrap(BASE), jax.grad(loss_fn)(params, batch)
    with pytest.raises(
        ValueError, match=r"needs the parameters: write updates, state = tx\.update"
    ):
        tx.update(g, tx.init(params))
    with pytest.raises(ValueError, match=r"gradient shaped like params.*tx\.update\(grads"):
        tx.update((jnp.ones(()), g), tx.init(params), params)
    with pytest.raises(TypeError, match="parameters that are arrays"):
        tx.update(g | {"out": "x"}, tx.init(params), params | {"out": "x"})
    with pytest.raises(TypeError, match=r"parameters that are arrays, .*eqx\.partition"):
        tx.init(params | {"out": jnp.tanh})
    w = jnp.array([1 + 1j])
    with pytest.raises(TypeError, match=r"needs real parameters, .*conjugate"):
        tx.update(w, tx.init(w), w)


@pytest.mark.parametrize("number", [0, -1, 2.5, "4", None])
@pytest.mark.parametrize("argument", ["group", "visits"])
def test_group_and_visits_must_be_positive_integers(argument, number):
    for call in (lambda **x: flatreg.revisit(BASE, **x), lambda **x: flatreg.revisited([], **x)):
        with pytest.raises(ValueError, match=f"{argument} must be a whole number.*{argument}=4"):
            call(**{argument: number})


def test_direction_dtype_must_be_floating():
    with pytest.raises(TypeError, match=r"floating-point dtype.*direction_dtype=jnp\.bfloat16"):
        flatreg.revisit(BASE, direction_dtype=jnp.int8)


@pytest.mark.parametrize(
    "base",
    [
        optax.sgd(0.1),
        optax.chain(optax.trace(0.9), optax.adam(0.1)),
        optax.masked(BASE, {"hidden": {"kernel": True, "bias": False}, "out": True}),
    ],
    ids=["none", "two", "masked"],
)
def test_momentum_sam_needs_one_momentum(base):
    with pytest.raises(ValueError, match=r"momentum=lambda opt_state"):
        flatreg.momentum_sam(base).init(tanh_net()[0])


def test_the_place_of_the_momentum_can_be_given():
    params, batch = tanh_net()
    base = optax.chain(optax.trace(0.9), optax.adam(0.1))
    tx = flatreg.momentum_sam(base, 0.1, momentum=lambda state: state[0].trace)
    g = jax.grad(loss_fn)(params, batch)
    _, state = tx.update(g, tx.init(params), params)
    expected = optax.tree.scale(-0.1 / optax.tree.norm(g), g)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), state.shift, expected)


def test_eval_params_needs_one_wrapper_and_its_parameters():
    params, _ = tanh_net()
    with pytest.raises(ValueError, match=r"found 0 states.*flatreg\.revisit\(optax\.sgd"):
        flatreg.eval_params(BASE.init(params), params)
    nested = flatreg.revisit(BASE).init(params), flatreg.revisit(BASE).init(params)
    with pytest.raises(ValueError, match="found 2 states"):
        flatreg.eval_params(nested, params)
    with pytest.raises(ValueError, match="pass the parameters that the optimizer trains"):
        flatreg.eval_params(flatreg.revisit(BASE).init(params), params["out"])


def test_eval_params_finds_a_wrapper_at_the_end_of_a_chain():
    params, batch = tanh_net()
    tx = optax.chain(optax.clip_by_global_norm(1.0), flatreg.previous_gradient_sam(BASE, 0.1))
    updates, state = tx.update(jax.grad(loss_fn)(params, batch), tx.init(params), params)
    shifted = optax.apply_updates(params, updates)
    distance = optax.tree.norm(optax.tree.sub(shifted, flatreg.eval_params(state, shifted)))
    assert distance == pytest.approx(0.1, rel=1e-5)


def mismatches(order, group=2, visits=2):
    params, batch = tanh_net()
    tx = flatreg.revisit(BASE, group=group, visits=visits)
    data = {number: jax.tree.map(lambda x, n=number: x + n, batch) for number in set(order)}

    @jax.jit
    def step(params, state, batch):
        fingerprint = flatreg.batch_fingerprint(batch)
        updates, state = tx.update(
            jax.grad(loss_fn)(params, batch), state, params, fingerprint=fingerprint
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in order:
        params, state = step(params, state, data[number])
    return int(optax.tree.get(state, "mismatches"))


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ([0, 1, 0, 1, 2, 3, 2, 3], 0),
        ([0, 1, 1, 0, 2, 3, 2, 3], 2),  # shuffled within a group
        ([0, 0, 1, 1, 2, 2, 3, 3], 4),  # another size of the group
        ([1, 0, 1, 2, 3, 2, 3, 0], 2),  # one step off, as after a wrong restart
    ],
    ids=["right", "shuffled", "group", "offset"],
)
def test_fingerprints_count_batches_in_the_wrong_order(order, wrong):
    assert mismatches(order) == wrong


@pytest.mark.nightly_except("float32", "uint8", "int4")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.int4, bool])
def test_a_fingerprint_depends_on_every_entry_and_the_order(dtype):
    x = (jnp.arange(24).reshape(4, 6) % 5 == 0).astype(dtype)
    seen = {int(flatreg.batch_fingerprint(x))}
    changes = [x.at[3, 5].set(x[3, 5] == 0), x.at[0, 0].set(x[0, 0] == 0), x[::-1], x.T, x[:2]]
    seen |= {int(flatreg.batch_fingerprint(y)) for y in changes}
    seen |= {int(flatreg.batch_fingerprint(tree)) for tree in ((x, x + x), (x + x, x))}
    assert len(seen) == (7 if dtype is bool else 8)  # True + True is True
    assert flatreg.batch_fingerprint(x) == flatreg.batch_fingerprint(jnp.copy(x))


def test_revisited_repeats_full_groups_of_any_iterable():
    assert list(flatreg.revisited(range(7), 3, 2)) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert list(flatreg.revisited(iter([1, 2]), 1, 3)) == [1, 1, 1, 2, 2, 2]
    assert list(flatreg.revisited([], 3)) == list(flatreg.revisited([1, 2], 3)) == []
    assert list(itertools.islice(flatreg.revisited(itertools.count(), 2), 6)) == [0, 1, 0, 1, 2, 3]


def test_hyperparameters_can_be_injected():
    params, batch = tanh_net()
    tx = optax.inject_hyperparams(flatreg.revisit, static_args=("group", "visits"))(
        base=BASE, rho=0.1, group=1
    )
    state = tx.init(params)
    state.hyperparams["rho"] = jnp.float32(0.7)
    updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
    shifted = optax.apply_updates(params, updates)
    distance = optax.tree.norm(optax.tree.sub(shifted, flatreg.eval_params(state, shifted)))
    assert distance == pytest.approx(0.7, rel=1e-5)
    with pytest.raises(ValueError, match="static_args='group'"):
        optax.inject_hyperparams(flatreg.revisit)(base=BASE, rho=0.1, group=1).init(params)
