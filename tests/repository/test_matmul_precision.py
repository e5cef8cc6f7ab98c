"""The library computes its own matrix products in full precision, not in TF32 or bfloat16."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from flatreg import lipschitz, measures

KEY = jax.random.key(0)
W, X = jnp.ones(4), jnp.ones((2, 4))
KERNELS = {"kernel": jnp.ones((3, 3, 2, 4)), "other": {"kernel": jnp.ones((4, 3))}}
MAPS = {"kernel": lipschitz.Convolution((8, 8, 2)), "other/kernel": lipschitz.Dense()}


def f(x):
    """A function without matrix products, used as a loss and as a network."""
    return jnp.cos(x)


def loss_fn(w):
    return jnp.sum(f(w))


def deflated_trace(w):
    pairs = measures.top_eigenpairs(loss_fn, w, KEY)
    return measures.trace(loss_fn, w, KEY, deflate=pairs)


def updated(factory, *args):
    tx = factory(*args, operators=MAPS)
    return tx.update(KERNELS, tx.init(KERNELS), KERNELS)


PRODUCTS = {
    "top_eigenpairs": lambda: measures.top_eigenpairs(loss_fn, W, KEY),
    "trace": lambda: measures.trace(loss_fn, W, KEY),
    "deflated trace": lambda: deflated_trace(W),
    "spectral_density": lambda: measures.spectral_density(loss_fn, W, KEY),
    "zeroth_order_flatness": lambda: measures.zeroth_order_flatness(loss_fn, W, KEY, 0.1),
    "first_order_flatness": lambda: measures.first_order_flatness(loss_fn, W, KEY, 0.1),
    "stability": lambda: measures.stability(loss_fn, W, KEY, learning_rate=0.1),
    "local_learning_coefficient": lambda: (
        measures.local_learning_coefficient(loss_fn, W, KEY, n=10).value
    ),
    "spectral_norm": lambda: lipschitz.spectral_norm(KERNELS["other"]["kernel"]),
    "spectral_norm of any size": lambda: lipschitz.spectral_norm(
        KERNELS["kernel"], lipschitz.Convolution((None, None, 2))
    ),
    "spectral_norm of a convolution": lambda: lipschitz.spectral_norm(
        KERNELS["kernel"], lipschitz.Convolution((8, 8, 2), 2)
    ),
    "spectral_norm_penalty": lambda: updated(lipschitz.spectral_norm_penalty, 1.0, KEY),
    "orthogonality_penalty": lambda: updated(lipschitz.orthogonality_penalty, 1.0),
    "project_spectral_norm": lambda: updated(lipschitz.project_spectral_norm, 1.0),
    "lipschitz_lower_bound": lambda: lipschitz.lipschitz_lower_bound(lambda _, x: f(x), (), X, KEY),
    "input_sensitivity": lambda: lipschitz.input_sensitivity(f, X),
}


def products(program):
    """All matrix products and convolutions, including those in loops and calls."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        parts = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        )
        for part in parts:
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from products(part)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_in_full_precision(name):
    found = [
        equation.params["precision"] for equation in products(jax.make_jaxpr(PRODUCTS[name])())
    ]
    assert found
    assert {*found} == {(jax.lax.Precision.HIGHEST,) * 2}
