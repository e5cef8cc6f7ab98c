"""Dense matrices of linear maps, and the first updates of transformations of kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def dense_matrix(linear_map, kernel):
    """The matrix (inputs, outputs) of a linear map, from its values on a basis."""
    shape = linear_map.input_shape_of(kernel)
    basis = jnp.eye(np.prod(shape, dtype=int), dtype=kernel.dtype).reshape(-1, *shape)
    return jax.vmap(lambda x: linear_map.apply(kernel, x).ravel())(basis)


def exact_norm(linear_map, kernel):
    """The spectral norm of a linear map, by the SVD of its matrix in float64."""
    with jax.enable_x64(True):
        matrix = jax.jit(functools.partial(dense_matrix, linear_map))
        return np.linalg.norm(matrix(jnp.asarray(kernel, jnp.float64)), 2)


def first_update(tx, params):
    """What a transformation makes of a gradient of zeros in its first step, and its state."""
    return tx.update(optax.tree.zeros_like(params), tx.init(params), params)


def assert_trees_close(actual, expected, rtol, atol=0.0):
    """Checks all leaves of two trees of the same structure."""
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, actual, expected)
