"""Parameters can be any tree: nested, with mixed dtypes, scalars, empty leaves and subtrees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flatreg
from tests.support.cases import CASES

SHAPES = [(), (1,), (3,), (2, 3), (0,), (3, 0)]
LEAVES = 6
LONGEST = LEAVES * 6
CONTAINERS = [
    lambda children: st.lists(children, max_size=3),
    lambda children: st.lists(children, max_size=3).map(tuple),
    lambda children: st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
]


def trees(dtypes):
    """Trees of ``ShapeDtypeStruct`` with at least one weight."""
    leaves = (
        st.builds(jax.ShapeDtypeStruct, st.sampled_from(SHAPES), st.sampled_from(dtypes))
        | st.none()
    )
    return st.recursive(
        leaves,
        lambda children: st.one_of(*[container(children) for container in CONTAINERS]),
        max_leaves=LEAVES,
    ).filter(lambda tree: sum(x.size for x in jax.tree.leaves(tree)) > 0)


def filled(tree, seed):
    """Random multiples of 1/16 between −1 and 1, which are exact in every dtype."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.integers(-16, 16, x.shape, endpoint=True) / 16, x.dtype), tree
    )


def loss(params):
    """A loss that couples all weights and whose gradient and curvature are not zero in [−2, 2]."""
    weights = [x.astype(float) for x in jax.tree.leaves(params)]
    total = sum((jnp.sum(x) for x in weights), jnp.zeros(()))
    own = sum(jnp.sum((x + 4) ** 3) for x in weights)
    return own / 24 + jnp.sin(total) / 8


def vector_loss(w, real):
    """The same loss of a padded vector, where ``real`` is one for its entries and else zero."""
    return jnp.sum(real * (w + 4) ** 3) / 24 + jnp.sin(jnp.sum(real * w)) / 8


def padded(tree):
    """The tree as a float64 vector, padded to a common length, and its length without padding."""
    w = np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
    return np.pad(w, (0, LONGEST - len(w))), len(w)


def assert_like(d, params):
    assert jax.tree.structure(d) == jax.tree.structure(params)
    for x, w in zip(jax.tree.leaves(d), jax.tree.leaves(params), strict=True):
        assert (x.shape, x.dtype) == (w.shape, w.dtype)


def assert_equals_the_vector(case, params, tolerance):
    grad_fn, method = jax.grad(loss), case.make()
    d, _ = method.update(grad_fn(params), method.init(params), params, grad_fn=grad_fn)
    assert_like(d, params)
    w, length = padded(params)
    with jax.enable_x64(True):
        real = jnp.asarray(np.arange(LONGEST) < length, float)
        surrogate = functools.partial(case.surrogate, functools.partial(vector_loss, real=real))
        expected = jax.grad(surrogate)(jnp.asarray(w))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(padded(d)[0], expected, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
@settings(max_examples=10)
@given(st.sampled_from(CASES), trees([jnp.float32]), st.integers(0, 99))
def test_direction_on_a_tree_equals_that_on_its_vector(case, tree, seed):
    assert_equals_the_vector(case, filled(tree, seed), tolerance=1e-5)


@pytest.mark.slow
@settings(max_examples=10)
@given(
    st.sampled_from(CASES),
    trees([jnp.bfloat16, jnp.float16, jnp.float32]),
    st.integers(0, 99),
)
def test_direction_on_mixed_dtypes_equals_that_on_the_vector(case, tree, seed):
    assert_equals_the_vector(case, filled(tree, seed), tolerance=0.1)


@pytest.mark.slow
@settings(max_examples=6)
@given(trees([jnp.bfloat16, jnp.float32]), st.integers(0, 99))
def test_states_of_combinators_keep_their_structure(tree, seed):
    params, schedule = filled(tree, seed), lambda step: 0.1 * step
    method = flatreg.combine(
        flatreg.sam(schedule),
        flatreg.every(flatreg.gam(schedule, 0.5), 2),
        flatreg.after(flatreg.randomly(flatreg.asam(0.3), schedule, jax.random.key(0)), 1),
    )
    state, grad_fn = method.init(params), jax.grad(loss)
    assert_like(method.init(tree), state)  # from shapes alone
    for _ in range(2):
        d, new_state = method.update(grad_fn(params), state, params, grad_fn=grad_fn)
        assert_like(d, params)
        assert_like(new_state, state)
        state = new_state


@pytest.mark.nightly_except("sam-*", "gam-*", "perturbed_gradient-*", "gradient_norm_penalty_1-*")
@pytest.mark.parametrize("tree", [{}, (), [(), {"a": None}], np.zeros(0, np.float32)], ids=repr)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tree_without_weights_is_returned(case, tree):
    method = case.make()
    d, _ = method.update(tree, method.init(tree), tree, grad_fn=jax.grad(loss))
    assert_like(d, tree)
