"""Penalties, projections and normalization of spectral norms, compared with dense SVDs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from flatreg import lipschitz
from tests.support.kernels import dense_matrix, first_update

KEY = jax.random.key(0)
# Linear maps of the kernels of ``network``, which have a gap between their singular values.
OPERATORS = {
    "dense/kernel": lipschitz.Dense(),
    "conv/kernel": lipschitz.Convolution((6, 6, 2), strides=2),
}


def network(dtype=jnp.float32):
    keys = jax.random.split(KEY, 2)
    return {
        "dense": {
            "kernel": jax.random.normal(keys[0], (9, 4), dtype),
            "bias": jnp.ones(4, dtype),
        },
        "conv": {"kernel": jax.random.normal(keys[1], (3, 3, 2, 3), dtype) / 2},
    }


def norm(kernel, linear_map):
    return jnp.linalg.svd(dense_matrix(linear_map, kernel), compute_uv=False)[0]


def norms(params, operators=OPERATORS):
    return {path: norm(params[path.split("/")[0]]["kernel"], m) for path, m in operators.items()}


def train(tx, steps=200, after_step=lambda params: None):
    """Trains with Adam on a loss that increases all weights beyond any bound."""
    params = network()
    chain = optax.chain(optax.adam(0.02), tx)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda w: -jnp.cos(7 * w) - 1, params)
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, after_step(params)

    state, seen = chain.init(params), []
    for _ in range(steps):
        params, state, found = step(params, state)
        seen.append(found)
    return params, seen


def converged(tx, params, steps=300):
    """The update of a zero gradient after many steps at the same parameters."""
    zeros = optax.tree.zeros_like(params)

    def step(state, _):
        updates, state = tx.update(zeros, state, params)
        return state, updates

    return jax.tree.map(lambda x: x[-1], jax.lax.scan(step, tx.init(params), length=steps)[1])


class TestPenalty:
    @pytest.mark.slow
    def test_it_adds_the_gradient_of_the_squared_norms(self):
        with jax.enable_x64(True):
            params = network(jnp.float64)
            tx = lipschitz.spectral_norm_penalty(0.3, KEY, operators=OPERATORS)
            updates = jax.jit(functools.partial(converged, tx))(params)
            expected = jax.grad(lambda w: 0.15 * sum(s**2 for s in norms(w).values()))(params)
            for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x, y, atol=1e-6 * max(np.abs(y).max(), 1e-3))
            assert not updates["dense"]["bias"].any()

    def test_the_norm_is_homogeneous(self):
        """⟨∇σ, W⟩ = σ, and the 50 iterations of the first update suffice for a wide gap."""
        params = {"kernel": jnp.diag(jnp.array([1.0, 2.0, 5.0]))}
        tx = lipschitz.spectral_norm_penalty(1.0, KEY)
        updates, state = first_update(tx, params)
        assert state.norms["kernel"] == pytest.approx(5, rel=1e-6)
        inner = float(jnp.vdot(updates["kernel"], params["kernel"]))  # of σ∇σ
        assert inner == pytest.approx(25, rel=1e-6)

    def test_a_circular_convolution_gets_its_symbol(self):
        params = {"kernel": jnp.ones((3, 3, 1, 1))}
        circle = lipschitz.Convolution((16, 16, 1), padding="CIRCULAR")
        tx = lipschitz.spectral_norm_penalty(1.0, KEY, operators={"kernel": circle})
        _, state = first_update(tx, params)
        assert 8.9 < state.norms["kernel"] <= 9 * (1 + 1e-6)  # after 51 iterations

    @pytest.mark.slow
    def test_the_orthogonality_penalty_adds_its_gradient(self):
        """2λW(WᵀW − 1), which is zero for orthogonal kernels."""
        convolution = {"kernel": lipschitz.Convolution((6, 6, 1))}
        for shape in ((5, 3), (3, 5), (3, 3, 1, 4)):
            operators = convolution if len(shape) > 2 else None
            tx = lipschitz.orthogonality_penalty(0.3, operators=operators)
            kernel = jax.random.normal(KEY, shape)
            matrix = kernel.reshape(-1, shape[-1])
            tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
            gram = tall.T @ tall
            slope = (0.6 * tall @ (gram - jnp.eye(len(gram)))).reshape(tall.shape)
            slope = slope if tall is matrix else slope.T
            params = {"kernel": kernel}
            update, _ = first_update(tx, params)
            np.testing.assert_allclose(update["kernel"], slope.reshape(shape), rtol=1e-4, atol=1e-5)
        tx = lipschitz.orthogonality_penalty(0.3)
        orthogonal = {"kernel": jnp.linalg.qr(jax.random.normal(KEY, (5, 3)))[0]}
        update, _ = first_update(tx, orthogonal)
        np.testing.assert_allclose(update["kernel"], 0, atol=1e-6)


class TestBeforeConvergence:
    """u and v are constants for differentiation, also when they are not singular vectors yet."""

    KERNEL = np.random.default_rng(3).normal(size=(5, 4))
    START = np.random.default_rng(4).normal(size=5)

    def state(self):
        """A state after the warm-up, whose vector is far from the singular vector."""
        zero = jnp.zeros(())
        return lipschitz.PowerState(
            jnp.ones((), jnp.int32), {"kernel": jnp.asarray(self.START)}, {"kernel": zero}
        )

    def vectors(self):
        """One iteration: v ∝ uW, u ∝ Wv, with σ = uᵀWv."""
        v = self.START @ self.KERNEL
        v /= np.linalg.norm(v)
        u = self.KERNEL @ v
        sigma = np.linalg.norm(u)
        assert sigma < 0.99 * np.linalg.norm(self.KERNEL, 2)
        return sigma, u / sigma, v

    def test_the_slope_of_the_penalty_is_σuv(self):
        params = {"kernel": jnp.asarray(self.KERNEL)}
        tx = lipschitz.spectral_norm_penalty(1.0, KEY)
        updates, state = tx.update(optax.tree.zeros_like(params), self.state(), params)
        sigma, u, v = self.vectors()
        np.testing.assert_allclose(state.norms["kernel"], sigma, rtol=1e-5)
        np.testing.assert_allclose(updates["kernel"], sigma * np.outer(u, v), rtol=1e-4, atol=1e-5)

    def test_the_slope_of_a_normalized_loss_holds_u_and_v_constant(self):
        """∇⟨C, W/σ⟩ = C/σ − ⟨C, W⟩uvᵀ/σ², with σ = uᵀWv."""
        weights = np.cos(np.arange(20.0)).reshape(5, 4)

        def loss(kernel):
            params, state = lipschitz.spectral_normalize({"kernel": kernel}, self.state())
            return jnp.vdot(weights, params["kernel"]), state

        slope, _ = jax.grad(loss, has_aux=True)(jnp.asarray(self.KERNEL))
        sigma, u, v = self.vectors()
        inner = np.sum(weights * self.KERNEL)
        expected = weights / sigma - inner * np.outer(u, v) / sigma**2
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


class TestProjection:
    def test_upper_bound_holds_after_every_step(self):
        tx = lipschitz.project_spectral_norm(1.5, norm="upper_bound", operators=OPERATORS)
        params, seen = train(tx, after_step=norms)
        for found in seen:
            assert max(found.values()) <= 1.5 * (1 + 1e-5)
        assert norms(params)["dense/kernel"] > 1.49  # a dense kernel is not shrunk below the bound
        assert params["dense"]["bias"].min() > 2  # biases are not bounded

    def test_power_iteration_has_caught_up_after_200_steps(self):
        tx = lipschitz.project_spectral_norm(1.5, operators=OPERATORS)
        params, seen = train(tx, after_step=norms)
        overshoot = max(max(found.values()) for found in seen) / 1.5 - 1
        print(f"overshoot on the way: {overshoot:.1e}")
        assert max(seen[-1].values()) <= 1.5 * (1 + 1e-3)
        assert min(norms(params).values()) > 1.49

    @pytest.mark.parametrize("ord", [1, jnp.inf])
    def test_induced_norms_stay_bounded(self, ord):
        def dense(params):
            return jnp.linalg.norm(params["dense"]["kernel"].T, ord)  # y = Wᵀx

        tx = lipschitz.project_norm(ord, 2.0, where=lambda path: path == "dense/kernel")
        _, seen = train(tx, 50, after_step=dense)
        assert max(seen) <= 2 * (1 + 1e-5)
        assert seen[-1] > 1.99

    def test_it_can_be_applied_on_every_other_step_only(self):
        tx = lipschitz.project_spectral_norm(1.5, norm="upper_bound", operators=OPERATORS)
        _, seen = train(flatreg.every(tx, 2), 100, after_step=norms)
        above = [bool(max(found.values()) > 1.5 * (1 + 1e-5)) for found in seen]
        assert not any(above[::2])
        assert all(above[51::2])

    def test_layers_can_have_different_bounds(self):
        tx = optax.chain(
            lipschitz.project_spectral_norm(0.5, where=lambda path: path == "dense/kernel"),
            lipschitz.project_spectral_norm(optax.constant_schedule(2.0), operators=OPERATORS),
        )
        found = norms(train(tx, 50)[0])
        assert found["dense/kernel"] == pytest.approx(0.5, rel=1e-3)
        assert found["conv/kernel"] == pytest.approx(2, rel=1e-3)


class TestNormalization:
    @pytest.mark.slow
    def test_norms_and_gradients_match_the_dense_svd(self):
        """The norms become the bound, and the gradient is that of 2W/σ(W) with σ by SVD."""
        with jax.enable_x64(True):
            params = network(jnp.float64)
            state = lipschitz.spectral_normalization_state(params, KEY, operators=OPERATORS)
            weights = jax.tree.map(jnp.sin, params)

            def normalize(params, state):
                return lipschitz.spectral_normalize(params, state, bound=2, operators=OPERATORS)

            def loss(params, state):
                normalized, state = normalize(params, state)
                return optax.tree.vdot(weights, normalized), state

            def exact_loss(params):
                sigma = norms(params)
                for path, s in sigma.items():
                    layer = path.split("/")[0]
                    kernel = 2 * params[layer]["kernel"] / s
                    params = params | {layer: params[layer] | {"kernel": kernel}}
                return optax.tree.vdot(weights, params)

            state = jax.lax.scan(lambda s, _: (normalize(params, s)[1], None), state, length=300)[0]
            for sigma in norms(normalize(params, state)[0]).values():
                assert sigma == pytest.approx(2, rel=1e-9)
            grads = jax.grad(loss, has_aux=True)(params, state)[0]
            expected = jax.grad(exact_loss)(params)
            for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x, y, atol=1e-6)
