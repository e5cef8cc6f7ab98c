"""The loss over a data set is the mean over its examples, with the memory of one batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatreg import measures
from tests.support.trained import batch_loss, digits, trained


def product_with_ones(f, params):
    """The Hessian-vector product with a vector of ones."""
    return measures.hessian(f, params)(jax.tree.map(jnp.ones_like, params))


def loss_over(batch_size, data):
    return measures.dataset_loss(batch_loss, data, batch_size=batch_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch_size", [64, 1000, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 100, 300))]
)
def test_it_is_the_mean_over_all_examples(batch_size):
    """Value, gradient and Hessian-vector product are those of the loss on all examples at once."""
    with jax.enable_x64(True):
        data, params = jax.tree.map(jnp.asarray, digits()), jax.tree.map(jnp.float64, trained())
        whole = functools.partial(batch_loss, batch=data)
        parts = loss_over(batch_size, data)
        for part_of in (lambda f, p: f(p), lambda f, p: jax.grad(f)(p), product_with_ones):
            actual, expected = (ravel_pytree(part_of(f, params))[0] for f in (parts, whole))
            np.testing.assert_allclose(actual, expected, atol=1e-12 * np.abs(expected).max())


def test_products_use_the_memory_of_one_batch():
    """Temporary memory falls with the batch size: a hundredth of the batch, below a tenth."""
    x, labels = (np.tile(a, (20,) + (1,) * (a.ndim - 1)) for a in digits())

    def peak(batch_size):
        f = loss_over(batch_size, (x, labels))
        compiled = jax.jit(product_with_ones).lower(f, trained()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(60) < 0.1 * peak(6000)


def test_one_batch_is_compiled_whatever_their_number():
    """The program has the same number of lines for 30 batches and for 6."""

    def size(batch_size):
        f = loss_over(batch_size, digits())
        return len(jax.jit(jax.grad(f)).lower(trained()).as_text().splitlines())

    assert size(10) == size(50)


def test_other_data_of_the_same_shapes_compile_nothing():
    x, labels = digits()
    traces = []

    @jax.jit
    def gradient(loss_fn, params):
        traces.append(loss_fn)
        return jax.grad(loss_fn)(params)

    for data in ((x, labels), (x[::-1], labels[::-1])):
        gradient(loss_over(64, data), trained())
    assert len(traces) == 1


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
def test_it_is_a_function_for_transformations(transform):
    """It is hashable, and ``jax.jit`` and ``jax.checkpoint`` take it."""
    loss = measures.dataset_loss(lambda w, x: jnp.mean((w - x) ** 2), np.arange(3.0), batch_size=2)
    assert {loss: "key"}[loss] == "key"
    value, slope = jax.value_and_grad(transform(loss))(jnp.float32(2))
    np.testing.assert_allclose([value, slope], [5 / 3, 2], rtol=1e-6)


def test_errors_name_the_batch_size_and_the_leaves():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        loss_over(0, digits())
    with pytest.raises(
        ValueError, match=r"same leading axis.*\(3, 2\), \(4,\).*dataset=\(x, labels\)"
    ):
        loss_over(2, (np.ones((3, 2)), np.ones(4)))
