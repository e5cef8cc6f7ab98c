"""The measurement of a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.common import measuring
from benchmarks.common.models.mlp import Mlp


@pytest.mark.nightly
@pytest.mark.slow
def test_flatness_agrees_with_the_dense_hessian():
    """λ_max and the trace match the eigenvalues; R⁰ lies between its first and second order."""
    model = Mlp((5,), 3)
    keys = jax.random.split(jax.random.key(0), 2)
    x, labels = jax.random.normal(keys[0], (40, 4)), jnp.arange(40) % 3
    variables = model.init(keys[1], x, train=False)
    flat, unravel = ravel_pytree(variables)

    def loss(flat):
        logits = model.apply(unravel(flat), x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = measuring._flatness(model, True, variables, (x, labels), jax.random.key(0))
    eigenvalues = np.linalg.eigvalsh(jax.hessian(loss)(flat))
    assert found["lambda_max"] == pytest.approx(eigenvalues[-1], rel=1e-3)
    error = found["trace"] - eigenvalues.sum()
    assert abs(error) < 4 * found["trace_standard_error"]
    slope = np.linalg.norm(jax.grad(loss)(flat))
    rho = measuring.RHO
    second_order = rho * slope + rho**2 * eigenvalues[-1] / 2  # bound to 3rd order
    assert rho * slope < found["zeroth_order_flatness"] < 1.01 * second_order
    assert found["zeroth_order_flatness"] <= found["first_order_flatness"]


@pytest.fixture(scope="module")
def network():
    model = Mlp((5,), 3)
    keys = jax.random.split(jax.random.key(1), 3)
    x, x_test = jax.random.normal(keys[0], (30, 4)), jax.random.normal(keys[1], (20, 4))
    variables = model.init(keys[2], x, train=False)
    return model, variables, (x, jnp.arange(30) % 3), (x_test, jnp.arange(20) % 3)


@pytest.mark.slow
def test_the_gap_counts_as_many_wrong_labels_as_training_had(network):
    """The expected loss if 40% of the fresh labels are replaced by each other class alike."""
    model, variables, train, (x, y) = network
    found = measuring.measure(model, variables, train, (x, y), 0.4, 0, flatness="no")
    losses = -jax.nn.log_softmax(model.apply(variables, x, train=False))
    chances = np.where(np.arange(3) == np.asarray(y)[:, None], 0.6, 0.2)
    fresh = float((chances * np.asarray(losses)).sum(1).mean())
    assert found.generalization_gap == pytest.approx(fresh - found.train_loss, abs=1e-5)
    assert found.test_loss == pytest.approx(float(np.mean(losses[np.arange(20), y])), rel=1e-5)


@pytest.mark.slow
def test_correctness_agrees_with_the_accuracy(network):
    model, variables, train, (x, y) = network
    found = measuring.correctness(model, variables, x, y)
    predictions = np.asarray(model.apply(variables, x, train=False)).argmax(1)
    np.testing.assert_array_equal(found, predictions == np.asarray(y))
    measured = measuring.measure(model, variables, train, (x, y), 0.0, 0, flatness="no")
    assert measured.test_accuracy == pytest.approx(found.mean())


def test_weight_noise_is_relative_to_each_weight():
    sizes = jnp.array([0.0, 1.0, 100.0])
    params = {"kernel": jnp.tile(sizes[:, None], (1, 4000))}
    noisy = measuring._perturbed({"params": params}, jax.random.key(0))["params"]["kernel"]
    spread = np.asarray(noisy - params["kernel"]).std(1)
    np.testing.assert_allclose(spread, measuring.NOISE * sizes, rtol=0.05)
