"""What a direction returns is checked, and each error shows the shapes and the corrected code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.problems import METHODS, loss_fn, tanh_net

every_method = pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("after", "randomly", "per_shard")]
)


def update(tx, params=None, grads=None, grad_fn=None):
    """Traces one update of the tanh network."""
    net, batch = tanh_net()
    params = net if params is None else params
    oracle = functools.partial(jax.grad(loss_fn), batch=batch) if grad_fn is None else grad_fn
    grads = params if grads is None else grads
    return jax.eval_shape(lambda: tx.update(grads, tx.init(params), params, grad_fn=oracle))


def stateless(change):
    """A method whose direction is the changed gradient."""
    return flatreg.from_direction(lambda grad_fn, params, g: change(grad_fn(params)))


def stateful(change, init=optax.tree.zeros_like):
    """A method that returns what ``change`` makes of the gradient and the state."""
    return flatreg.from_stateful_direction(
        init, lambda grad_fn, params, g, state: change(grad_fn(params), state)
    )


WRONG_DIRECTIONS = {  # what the direction does with the gradient -> a part of the error
    "scalar leaf": (
        lambda g: g | {"out": jnp.sum(g["out"])},
        r"params\['out'\] has \(8,\) and d \(\)",
    ),
    "axis of one": (lambda g: g | {"out": g["out"][None]}, r"\(8,\) and d \(1, 8\)"),
    "column": (lambda g: g | {"out": g["out"][:, None]}, r"\(8,\) and d \(8, 1\)"),
    "number": (lambda g: 0.0, r"params has the shapes \{.*\} and d \(\)"),
    "missing leaf": (lambda g: {"hidden": g["hidden"]}, r"params has the shapes .*'out': \(8,\)"),
    "nothing": (lambda g: None, r"and d None"),
    "flat vector": (lambda g: jax.flatten_util.ravel_pytree(g)[0], r"and d \(48,\)"),
    "with a state": (lambda g: (g, 0.0), r"flatreg\.from_stateful_direction\(init, direction\)"),
}


@pytest.mark.parametrize(("change", "text"), WRONG_DIRECTIONS.values(), ids=WRONG_DIRECTIONS)
@pytest.mark.parametrize("kind", ["stateless", "stateful"])
def test_direction_of_the_wrong_shape_raises(kind, change, text):
    tx = stateless(change)
    if kind == "stateful":
        tx = stateful(lambda g, state: (change(g), state))
    with pytest.raises(ValueError, match=rf"structure and shapes of params.*{text}") as caught:
        update(tx)
    assert "return" in str(caught.value)


def test_one_array_of_the_wrong_shape_raises():
    """The number 1.0 would be broadcast into all parameters."""
    tx = flatreg.from_direction(lambda grad_fn, params, g: jnp.sum(g))
    with pytest.raises(ValueError, match=r"params has \(3,\) and d \(\).*return grad_fn"):
        update(tx, params=jnp.ones(3), grad_fn=lambda w: w)


@pytest.mark.parametrize("combination", ["every", "combine", "chain", "per_shard"])
def test_wrong_direction_inside_a_combination_raises(combination):
    wrong = stateless(lambda g: jax.tree.map(jnp.sum, g))
    tx = {
        "every": lambda: flatreg.every(wrong, 2),
        "combine": lambda: flatreg.combine(flatreg.sam(), wrong),
        "chain": lambda: optax.chain(wrong, optax.sgd(0.1)),
        "per_shard": lambda: flatreg.per_shard(wrong),
    }[combination]()
    params, batch = tanh_net()
    _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, shards=2)(params, batch)
    with pytest.raises(ValueError, match=r"'hidden/kernel'\] has \(4, 8\) and d \(\)"):
        tx.update(g, tx.init(params), params, grad_fn=grad_fn)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [(lambda x: x + 1j, "complex64"), (lambda x: x > 0, "bool"), (jnp.int32, "int32")],
    ids=["complex", "bool", "int"],
)
def test_direction_of_the_wrong_dtype_raises(change, dtype):
    tx = stateless(lambda g: g | {"out": change(g["out"])})
    with pytest.raises(TypeError, match=rf"floating-point.*'out' \({dtype}\).*astype\(w\.dtype\)"):
        update(tx)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_direction_of_another_precision_is_cast(dtype):
    tx = stateless(lambda g: jax.tree.map(lambda x: x.astype(dtype), g))
    d, _ = update(tx)
    assert {x.dtype for x in jax.tree.leaves(d)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", ["tree", "one array", "pair of rows", "list"])
def test_forgotten_state_raises(kind):
    """An array of two rows, or a dictionary with two keys, would unpack into a pair."""
    params, oracle, change = None, lambda w: w, lambda g, state: g
    if kind == "one array":
        params = jnp.ones(3)
    elif kind == "pair of rows":
        params = jnp.ones((2, 3))
    elif kind == "list":
        change = lambda g, state: [g, state]  # noqa: E731
    with pytest.raises(TypeError, match=r"must return the pair d, state.*Write return d, state"):
        update(stateful(change), params=params, grad_fn=oracle)


def test_parameters_that_are_a_pair_do_not_pass_for_a_state():
    params = jnp.ones(3), jnp.ones(2)
    with pytest.raises(ValueError, match=r"params has the shapes \(\(3,\), \(2,\)\) and d \(3,\)"):
        update(stateful(lambda g, state: g), params=params, grad_fn=lambda w: w)


WRONG_STATES = {
    "shape": (
        lambda s: s | {"out": s["out"][None]},
        r"\['out'\] has float32\[8\].*float32\[1, 8\]",
    ),
    "scalar": (
        lambda s: s | {"out": jnp.sum(s["out"])},
        r"\['out'\] has float32\[8\].*float32\[\]",
    ),
    "dtype": (
        lambda s: s | {"out": s["out"].astype(jnp.bfloat16)},
        r"float32\[8\].*bfloat16\[8\].*optax\.tree\.cast_like\(new_state, state\)",
    ),
    "structure": (lambda s: [s], r"shapes \{.*\} and the new state \[\{"),
    "nothing": (lambda s: None, r"the new state None"),
}


@pytest.mark.parametrize(("change", "text"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_state_that_changes_its_kind_raises(change, text):
    with pytest.raises(ValueError, match=rf"init\(params\).*{text}"):
        update(stateful(lambda g, state: (g, change(state))))


@pytest.mark.parametrize(
    "init",
    [lambda params: 0, lambda params: np.int32(0), lambda params: jax.random.key(0)],
    ids=["number", "numpy", "key"],
)
def test_states_of_numbers_and_keys_are_accepted(init):
    def change(g, state):
        is_key = jnp.issubdtype(getattr(state, "dtype", int), jax.dtypes.prng_key)
        return g, jax.random.split(state)[0] if is_key else state + 1

    update(stateful(change, init))


class TestGradient:
    """Gradients of the wrong shape, from the caller and from the oracle."""

    @every_method
    def test_gradient_of_the_wrong_shape_raises_with_shapes(self, name):
        params, _ = tanh_net()
        grads = params | {"out": params["out"][:, None]}
        text = r"params\['out'\] has \(8,\) and the gradient \(8, 1\).*tx\.update\(grads, state"
        with pytest.raises(ValueError, match=text):
            update(METHODS[name](), grads=grads)

    @every_method
    def test_oracle_of_the_wrong_shape_raises_with_shapes(self, name):
        text = r"params\['out'\] has \(8,\) and grad_fn\(params\) \(\).*jax\.grad\(loss_fn\)"
        with pytest.raises(TypeError, match=text):
            update(METHODS[name](), grad_fn=lambda p: p | {"out": jnp.sum(p["out"])})

    def test_gradient_of_the_wrong_structure_raises_with_shapes(self):
        params, _ = tanh_net()
        text = r"params has the shapes \{'hidden'.* and the gradient \{'out': \(8,\)\}"
        with pytest.raises(ValueError, match=text):
            update(flatreg.sam(), grads={"out": params["out"]})


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(0.1),
    "scale": lambda: optax.scale(-0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "sign": lambda: optax.sign_sgd(0.1),
    "adam": lambda: optax.adam(0.1),
}
COMBINATIONS = {
    "combine": lambda method: flatreg.combine(flatreg.sam(), method),
    "every": lambda method: flatreg.every(method, 2),
    "after": lambda method: flatreg.after(method, 2),
    "randomly": lambda method: flatreg.randomly(method, 0.5, jax.random.key(0)),
}
every_combination = pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)


def extragradient(grad_fn, params, g):
    return grad_fn(optax.tree.add_scale(params, -0.1, g))


def own_transformation(uses_oracle):
    """A transformation that does not come from flatreg, with the state of ``optax.sgd``."""

    def update(updates, state, params=None, *, grad_fn=None, **extra):
        return (extragradient(grad_fn, params, updates) if uses_oracle else updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def needing_more(grads, state, params=None, *, temperature, grad_fn, **extra):
    return grad_fn(params), state


ACCEPTED = {
    "uses the oracle": lambda: own_transformation(True),
    "ignores the oracle": lambda: own_transformation(False),
    "plain": lambda: optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda g, state, params=None: (g, state)
    ),
    "in a chain": lambda: optax.chain(optax.clip(1.0), own_transformation(True)),
    "injected": lambda: optax.inject_hyperparams(own_transformation, "uses_oracle")(
        uses_oracle=True
    ),
    "needs more": lambda: optax.chain(
        optax.GradientTransformationExtraArgs(lambda params: (), needing_more), optax.clip(1.0)
    ),
    "injected method": lambda: optax.inject_hyperparams(flatreg.sam, "scale")(rho=0.1),
    "clipped method": lambda: optax.chain(flatreg.sam(), optax.clip(1.0)),
    "from_direction": lambda: flatreg.from_direction(extragradient),
    "conditional": lambda: optax.conditionally_transform(flatreg.sam(), lambda step: step > 1),
    "nested": lambda: flatreg.every(flatreg.combine(flatreg.sam(), flatreg.asam()), 2),
    "observed": lambda: flatreg.observe(flatreg.sam()),
}


@every_combination
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_combinators_reject_every_optimizer(combination, optimizer):
    with pytest.raises(ValueError, match=r"takes methods.*optax\.chain\(flatreg\..*optax\.sgd"):
        combination(optimizer()).init(tanh_net()[0])


@every_combination
@pytest.mark.parametrize("method", ACCEPTED.values(), ids=ACCEPTED)
def test_combinators_accept_methods_of_others(combination, method):
    combination(method()).init(tanh_net()[0])
