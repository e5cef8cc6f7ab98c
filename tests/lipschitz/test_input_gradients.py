"""Penalties and sensitivities compared with the dense Jacobian of each example, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import lipschitz
from tests.support.kernels import assert_trees_close

KEY = jax.random.key(0)
SHAPE = (3, 2)
pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
@jax.ensure_compile_time_eval()
def weights():
    keys = jax.random.split(KEY, 2)
    return {"in": jax.random.normal(keys[0], (6, 5)), "out": jax.random.normal(keys[1], (5, 4))}


def several(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["in"]) @ params["out"]


FUNCTIONS = {
    "(batch,)": lambda params, x: jnp.sum(several(params, x) ** 2, axis=1),
    "(batch, 1)": lambda params, x: several(params, x)[:, :1],
    "(batch, 4)": several,
}
every_shape = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@functools.cache
@jax.ensure_compile_time_eval()
def inputs(count=11):
    return jax.random.normal(jax.random.key(1), (count, *SHAPE))


def jacobians(function, params, x):
    """One dense Jacobian (outputs, inputs) per example, computed from that example alone."""
    rows = jax.vmap(jax.jacobian(lambda a: function(params, a[None])[0]))(x)
    return rows.reshape(len(x), -1, 6)


def norms(function, params, x):
    return jnp.sqrt(jnp.sum(jacobians(function, params, x) ** 2, axis=(1, 2)))


class TestPenalty:
    @pytest.mark.nightly_except("4.0-True-*", "0.0-False-(batch,)")
    @every_shape
    @pytest.mark.parametrize(
        ("target", "one_sided"), [(0.0, False), (1.0, False), (4.0, False), (4.0, True)]
    )
    def test_value_and_gradient_match_the_formula(self, function, target, one_sided):
        x = inputs()

        def expected(params):
            excess = norms(function, params, x) - target
            return jnp.mean((jnp.maximum(excess, 0) if one_sided else excess) ** 2)

        def actual(params):
            f = functools.partial(function, params)
            return lipschitz.input_gradient_penalty(f, x, target, one_sided=one_sided)

        assert_trees_close(
            jax.jit(jax.value_and_grad(actual))(weights()),
            jax.jit(jax.value_and_grad(expected))(weights()),
            rtol=1e-9,
            atol=1e-12,
        )

    def test_the_norm_is_taken_over_all_axes_of_an_example(self):
        x = jnp.ones((2, 3, 4, 5))  # ∇f = 1 everywhere, its norm √60
        penalty = lipschitz.input_gradient_penalty(lambda x: x.sum(axis=(1, 2, 3)), x)
        assert penalty == pytest.approx((60**0.5 - 1) ** 2)

    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_zero_gradients_have_a_finite_derivative(self, target):
        def penalty(w):
            x = -jnp.abs(inputs())
            return lipschitz.input_gradient_penalty(
                lambda x: jax.nn.relu(w * x.sum(axis=(1, 2))), x, target
            )

        value, slope = jax.value_and_grad(penalty)(2.0)
        assert (value, slope) == (target**2, 0)

    def test_bfloat16_is_computed_in_float32(self):
        w = jnp.ones(6, jnp.bfloat16)
        x = inputs().astype(jnp.bfloat16)
        penalty = lipschitz.input_gradient_penalty(lambda x: x.reshape(len(x), -1) @ w, x)
        assert penalty.dtype == jnp.float32
        assert penalty == pytest.approx((6**0.5 - 1) ** 2)

    def test_errors_show_what_is_valid(self):
        with pytest.raises(ValueError, match=r"\(11,\) or \(11, outputs\)"):
            lipschitz.input_gradient_penalty(jnp.sum, inputs())
        with pytest.raises(ValueError, match=r"got \(11, 3, 2\)"):
            lipschitz.input_gradient_penalty(jnp.sin, inputs())
        with pytest.raises(TypeError, match="floating-point inputs"):
            lipschitz.input_gradient_penalty(jnp.sin, jnp.arange(3))
        with pytest.raises(ValueError, match=r"pass x\[None\]"):
            lipschitz.input_gradient_penalty(jnp.sin, 1.0)


class TestInterpolated:
    def test_every_example_has_its_own_uniform_epsilon(self):
        seen = []

        def f(x):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
            return x.sum(axis=(1, 2))

        real, fake = jnp.ones((4000, 3, 2)), jnp.zeros((4000, 3, 2))
        lipschitz.interpolated_gradient_penalty(f, real, fake, KEY)
        jax.effects_barrier()
        epsilon = seen[0].reshape(4000, 6)
        assert (epsilon == epsilon[:, :1]).all()
        quantiles = np.quantile(epsilon[:, 0], [0.1, 0.5, 0.9])
        np.testing.assert_allclose(quantiles, [0.1, 0.5, 0.9], atol=0.03)

    def test_it_is_the_penalty_at_the_interpolated_inputs(self):
        def f(x):
            return jnp.sum(x**2, axis=(1, 2)) / 2  # ∇f = x̂

        real, fake = inputs(), -2 * inputs()
        actual = lipschitz.interpolated_gradient_penalty(f, real, fake, KEY, 0.0)
        epsilon = jax.random.uniform(KEY, (11, 1, 1), real.dtype)
        mixed = epsilon * real + (1 - epsilon) * fake
        np.testing.assert_allclose(actual, jnp.sum(mixed**2) / 11)

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match="same shape"):
            lipschitz.interpolated_gradient_penalty(jnp.sum, inputs(3), inputs(4), KEY)


class TestSensitivity:
    @pytest.mark.nightly_except("4-(batch,)", "11-(batch, 4)", "100-(batch, 1)")
    @every_shape
    @pytest.mark.parametrize("batch_size", [4, 11, 100])
    def test_norms_and_indices_match_the_dense_jacobians(self, function, batch_size):
        dense = np.asarray(jacobians(function, weights(), inputs()))
        frobenius = np.linalg.norm(dense, axis=(1, 2))
        spectral = np.linalg.norm(dense, 2, axis=(1, 2))
        measure = jax.jit(
            functools.partial(lipschitz.input_sensitivity, batch_size=batch_size), static_argnums=0
        )
        found = measure(functools.partial(function, weights()), inputs())
        expected = (frobenius.mean(), frobenius.max(), frobenius.argmax())
        expected += (spectral.mean(), spectral.max(), spectral.argmax())
        np.testing.assert_allclose(found, expected, rtol=1e-10)

    @pytest.mark.nightly_except("4-(batch, 4)", "100-(batch,)")
    @every_shape
    @pytest.mark.parametrize("batch_size", [4, 100])
    def test_geometric_complexity_is_the_mean_square(self, function, batch_size):
        x = inputs()

        def actual(params):
            f = functools.partial(function, params)
            return lipschitz.geometric_complexity(f, x, batch_size=batch_size)

        def expected(params):
            return jnp.mean(norms(function, params, x) ** 2)

        assert_trees_close(
            jax.jit(jax.value_and_grad(actual))(weights()),
            jax.jit(jax.value_and_grad(expected))(weights()),
            rtol=1e-9,
        )

    @pytest.mark.slow
    def test_labels_are_passed_with_their_examples(self):
        labels = jnp.arange(11) % 4

        def loss(x, labels):
            logits = jax.nn.log_softmax(several(weights(), x))
            return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

        found = lipschitz.input_sensitivity(loss, inputs(), labels, batch_size=3)
        gradients = jax.grad(lambda x: loss(x, labels).sum())(inputs())
        expected = np.linalg.norm(gradients.reshape(11, -1), axis=1)
        np.testing.assert_allclose(found.max_norm, expected.max(), rtol=1e-10)
        assert found.argmax_norm == expected.argmax()

    def test_equal_singular_values_have_a_finite_derivative(self):
        """For J = wQ with orthogonal rows in Q, all singular values are w, and ∂‖J‖₂/∂w is 1."""
        orthogonal = jnp.linalg.qr(jax.random.normal(KEY, (6, 4)))[0]
        x = inputs(3)
        for rows in (jnp.eye(6), orthogonal):

            def largest(w, rows=rows):
                f = lambda x: w * x.reshape(len(x), -1) @ rows  # noqa: E731
                return lipschitz.input_sensitivity(f, x).max_spectral

            value, slope = jax.jit(jax.value_and_grad(largest))(2.0)
            np.testing.assert_allclose((value, slope), (2, 1), rtol=1e-12)

    def test_a_constant_function_has_no_sensitivity(self):
        found = lipschitz.input_sensitivity(lambda x: jnp.ones(len(x)), inputs())
        assert found == (0, 0, 0, 0, 0, 0)

    def test_errors_show_what_is_valid(self):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            lipschitz.input_sensitivity(several, inputs(), batch_size=0)
        with pytest.raises(ValueError, match=r"\(1,\) or \(1, outputs\)"):
            lipschitz.geometric_complexity(jnp.sin, inputs())
