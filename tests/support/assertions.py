"""Assertions that two trees of arrays are equal or close."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_equal(actual: Any, expected: Any) -> None:
    """The trees have the same structure, dtypes and bits; random keys are compared too."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in _pairs_of_leaves(actual, expected):
        assert jnp.result_type(x) == jnp.result_type(y)
        np.testing.assert_array_equal(_without_key_type(x), _without_key_type(y))


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """The trees have the same structure and are absolutely and relatively close."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_leaves_close(actual, expected, tolerance)


def assert_leaves_equal(actual: Any, expected: Any) -> None:
    """The leaves are equal in order, whatever the structures of the trees."""
    for x, y in _pairs_of_leaves(actual, expected):
        np.testing.assert_array_equal(_without_key_type(x), _without_key_type(y))


def assert_leaves_close(
    actual: Any, expected: Any, tolerance: float = 1e-9, *, atol: float | None = None
) -> None:
    """The leaves are close in order, whatever the structures of the trees."""
    atol = tolerance if atol is None else atol
    for x, y in _pairs_of_leaves(actual, expected):
        np.testing.assert_allclose(
            _without_key_type(x), _without_key_type(y), rtol=tolerance, atol=atol
        )


def _pairs_of_leaves(actual: Any, expected: Any) -> Any:
    return zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)


def _without_key_type(x: Any) -> Any:
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x
