"""Perturbed gradients are unbiased, reproducible from the key, and noisier where the loss is flat.

The registry tests the formula with a fixed z. These tests are about the noise and its size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from flatreg import CurvatureScale
from tests.methods.test_costs import Counter
from tests.support.problems import assert_equal, direction, tanh_net

KEY = jax.random.key(3)
make = functools.partial(flatreg.perturbed_gradient, KEY)
MATRIX = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -1.0], [0.0, -1.0, 3.0]], np.float32)
CURVATURES = np.array([100.0, 1.0, 0.04, 0.0, -5.0], np.float32)
W = jnp.array([1.0, -2.0, 0.5])
SIGMA = 0.4
VARIANCES = {"uniform": 1 / 3, "truncated_normal": 0.7737413, "normal": 1.0}
every_distribution = pytest.mark.parametrize("distribution", VARIANCES)


def quadratic(w):
    return w @ MATRIX @ w / 2


def bowl(w):
    """Σ aᵢwᵢ²/2, whose Hessian is diagonal."""
    return jnp.sum(CURVATURES * w**2) / 2


def walk(method, loss, w, steps):
    """The directions of several steps at the same parameters, and the last state."""
    grad_fn = jax.grad(loss)

    def step(state, _):
        d, state = method.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return state, d

    state, directions = jax.lax.scan(step, method.init(w), length=steps)
    return np.asarray(directions, np.float64), state


def assert_mean(draws, expected):
    """Checks that the mean is within four standard errors of its expectation, which are small."""
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - expected) <= 4 * error)
    assert np.all(error < 0.02 * (1 + np.abs(expected)))


@every_distribution
def test_mean_direction_on_a_quadratic_is_the_gradient(distribution):
    method = make(SIGMA, distribution=distribution)
    assert_mean(walk(method, quadratic, W, 10_000)[0], MATRIX @ W)


@every_distribution
@pytest.mark.parametrize("curvature", [None, CurvatureScale()], ids=["plain", "curvature"])
def test_antithetic_pairs_are_exact_on_a_quadratic(distribution, curvature):
    method = make(SIGMA, distribution=distribution, antithetic=True, curvature=curvature)
    directions, _ = walk(method, quadratic, W, 10)
    np.testing.assert_allclose(directions, np.tile(MATRIX @ W, (10, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.nightly_except("single-normal", "pairs-uniform")
@every_distribution
@pytest.mark.parametrize("antithetic", [False, True], ids=["single", "pairs"])
def test_mean_direction_on_a_quartic(distribution, antithetic):
    """E L(θ + u) = Σ θ⁴/4 + (3/2)θ²E u² + …, so its gradient is θ³ + 3θ E u²."""
    method = make(SIGMA, distribution=distribution, antithetic=antithetic)
    directions, _ = walk(method, lambda w: jnp.sum(w**4) / 4, W, 20_000)
    assert_mean(directions, np.asarray(W**3 + 3 * W * SIGMA**2 * VARIANCES[distribution]))


@every_distribution
def test_noise_has_the_bounds_and_variance_of_its_distribution(distribution):
    method = make(SIGMA, distribution=distribution)
    z = walk(method, lambda w: jnp.sum(w**2) / 2, jnp.zeros(50), 1000)[0] / SIGMA
    np.testing.assert_allclose(z.var(), VARIANCES[distribution], rtol=0.02)
    bound = {"uniform": 1, "truncated_normal": 2, "normal": np.inf}[distribution]
    assert 0.99 * min(bound, 3) < np.abs(z).max() <= bound * (1 + 1e-6)
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 0.15  # weights are independent
    assert abs(np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]) < 0.02  # steps are independent


def test_a_function_can_draw_the_noise():
    method = make(SIGMA, distribution=jax.random.rademacher)
    directions, _ = walk(method, lambda w: jnp.sum(w**2) / 2, jnp.zeros(50), 20)
    np.testing.assert_allclose(np.abs(directions), SIGMA, rtol=1e-6)


def test_one_probe_finds_a_diagonal_hessian():
    """More probes do not change the estimate."""
    method = make(0.1, curvature=CurvatureScale(interval=3, decay=0.9))
    for steps in (1, 2, 40):
        _, state = walk(method, bowl, jnp.ones(5), steps)
        np.testing.assert_allclose(optax.tree.get(state, "diagonal"), CURVATURES, rtol=1e-6)


def test_probes_average_to_the_diagonal_of_any_hessian():
    method = make(0.1, curvature=CurvatureScale(interval=1, decay=1.0))
    _, state = walk(method, quadratic, W, 4000)
    np.testing.assert_allclose(optax.tree.get(state, "diagonal"), np.diag(MATRIX), atol=0.1)


@pytest.mark.parametrize("interval", [1, 2])
def test_estimate_is_a_mean_first_and_a_moving_average_later(interval):
    scale, w, seen = CurvatureScale(interval, decay=0.75), jnp.ones(2), []
    method = make(0.1, curvature=scale)
    state = method.init(w)
    update = jax.jit(
        lambda a, state: method.update(w, state, w, grad_fn=jax.grad(lambda w: a * w @ w / 2))
    )
    for a in np.repeat([1.0, 3.0, 8.0, 2.0, 2.0, 10.0], interval):
        _, state = update(a, state)
        seen.append(float(optax.tree.get(state, "diagonal")[0]))
    np.testing.assert_allclose(seen[: 4 * interval : interval], [1, 2, 4, 3.5])  # plain means
    np.testing.assert_allclose(seen[4 * interval :: interval], [3.125, 4.84375])  # weight 1/4 each
    assert seen[::interval] == seen[interval - 1 :: interval]  # unchanged between probes


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_noise_is_larger_where_the_loss_is_flatter(rho):
    sigma, gamma, eps, w = 0.5, 0.3, 0.2, np.array([1.0, 2.0, -3.0, 1.0, 4.0])
    kappa = gamma * np.abs(w) + eps
    denominator = np.maximum(CURVATURES, 0) / 3 + rho * np.linalg.norm(kappa) / 9
    with np.errstate(divide="ignore"):
        expected = np.minimum(np.sqrt(sigma**2 / denominator), kappa)
    method = make(
        sigma,
        distribution=lambda key, shape, dtype: jnp.ones(shape, dtype),
        curvature=CurvatureScale(rho=rho, gamma=gamma, eps=eps),
    )
    directions, _ = walk(method, bowl, jnp.asarray(w, jnp.float32), 1)
    sizes = directions[0][:3] / CURVATURES[:3] - w[:3]
    np.testing.assert_allclose(sizes, expected[:3], rtol=1e-3)
    assert sizes[0] < sizes[1] < sizes[2]
    np.testing.assert_allclose(directions[0][3:], (CURVATURES * (w + expected))[3:], rtol=1e-5)


@pytest.mark.nightly_except("nan")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_probes_do_not_change_the_estimate(bad):
    method, w = make(0.1, curvature=CurvatureScale(1)), jnp.ones(5)
    _, state = walk(method, bowl, w, 1)
    d, after = method.update(w, state, w, grad_fn=jax.grad(lambda w: bowl(w) + bad * w[0] ** 2))
    assert not np.all(np.isfinite(d))
    np.testing.assert_allclose(optax.tree.get(after, "diagonal"), CURVATURES, rtol=1e-6)


@pytest.mark.parametrize("loop", ["scan", "jit"])
def test_no_product_is_computed_between_probes(loop):
    oracle, w = Counter(), np.array([1.0, -2.0, 0.5], np.float32)
    method = make(0.1, curvature=CurvatureScale(interval=5, hvp=flatreg.finite_difference_hvp(0.1)))
    step = lambda state, _: (method.update(w, state, w, grad_fn=oracle)[1], None)  # noqa: E731
    if loop == "scan":
        jax.lax.scan(step, method.init(w), length=11)
    else:
        state, jitted = method.init(w), jax.jit(step)
        for _ in range(11):
            state, _ = jitted(state, None)
    assert oracle.runs() == 11 + 3 * 2  # on the steps 0, 5 and 10 a product takes two gradients


@pytest.mark.parametrize("curvature", [None, CurvatureScale(interval=2)])
def test_a_schedule_scales_the_noise(curvature):
    sigmas = jnp.array([0.3, 0.1, 0.0])
    method = make(lambda t: sigmas[t], distribution=jax.random.rademacher, curvature=curvature)
    directions, _ = walk(method, lambda w: 3 * jnp.sum(w**2) / 2, jnp.full(4, 9.0), 3)
    expected = [[0.3] * 4, [0.1] * 4, [0.0] * 4]  # the noise of a weight with curvature 3 is σ
    np.testing.assert_allclose(np.abs(directions / 3 - 9), expected, rtol=1e-4, atol=1e-6)


def test_noise_and_probe_are_independent():
    """The signs v₁v₂ of the probe and z₁z₂ of the noise agree on half of the keys."""
    matrix = jnp.array([[1.0, 0.5], [0.5, 1.0]])

    @jax.jit
    @jax.vmap
    def signs(key):
        tx = flatreg.perturbed_gradient(key, 0.1, curvature=CurvatureScale())
        w = jnp.zeros(2)
        d, state = tx.update(w, tx.init(w), w, grad_fn=lambda w: matrix @ w)
        noise = jnp.linalg.solve(matrix, d)
        probe = (optax.tree.get(state, "diagonal")[0] - matrix[0, 0]) / matrix[0, 1]  # v₁v₂
        return jnp.prod(jnp.sign(noise)), probe

    z, v = signs(jax.random.split(KEY, 400))
    np.testing.assert_allclose(np.abs(v), 1, rtol=1e-5)
    assert abs(np.mean(z * v)) < 0.2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_noise_is_drawn_in_float32(dtype):
    """Noise in bfloat16 would have 256 values per octave."""
    seen = []

    def distribution(key, shape, dtype):
        seen.append(dtype)
        return jax.random.normal(key, shape, dtype)

    w = jnp.ones(3, dtype)
    tx = make(0.1, distribution=distribution)
    jax.eval_shape(lambda w: tx.update(w, tx.init(w), w, grad_fn=lambda w: w), w)
    assert seen == [jnp.float32]


def test_flat_loss_gets_the_largest_noise_unless_sigma_is_zero():
    """The noise is κ for every σ > 0. For σ = 0 the noise is zero, not NaN."""
    w, scale = jnp.full(3, 2.0), CurvatureScale(hvp=lambda grad_fn, w: (w, jnp.zeros_like))
    for sigma, most in ((1e-6, 0.1 * 2 + 0.1), (0.0, 0.0)):
        method = make(sigma, distribution=jax.random.rademacher, curvature=scale)
        d, _ = method.update(w, method.init(w), w, grad_fn=lambda w: w)
        np.testing.assert_allclose(np.abs(d - w), most, rtol=1e-5)


def test_noise_depends_only_on_the_key_and_the_count():
    (params, batch), method = tanh_net(), make(0.1)
    first, state = direction(method, params, batch)
    second, _ = direction(method, params, batch, state)
    assert_equal(direction(method, params, batch)[0], first)
    raw = flatreg.perturbed_gradient(jax.random.key_data(KEY), 0.1)
    assert_equal(direction(raw, params, batch)[0], first)
    restored = optax.tree.set(method.init(params), count=jnp.int32(1))
    assert_equal(direction(method, params, batch, restored)[0], second)
    other = flatreg.perturbed_gradient(jax.random.key(4), 0.1)
    for d in (second, direction(other, params, batch)[0]):
        assert optax.tree.norm(optax.tree.sub(d, first)) > 1e-3


@pytest.mark.parametrize("key", [0, 0.1, None, jax.random.split(KEY), jnp.ones(2), "key"])
def test_key_must_be_a_key(key):
    with pytest.raises(TypeError, match=r"perturbed_gradient\(jax\.random\.key\(0\)"):
        flatreg.perturbed_gradient(key, 0.1)


@pytest.mark.parametrize("distribution", ["gaussian", None, 1.0])
def test_unknown_distribution_error_lists_the_names(distribution):
    with pytest.raises(ValueError, match=r"'uniform', 'truncated_normal', 'normal'.*static_args"):
        make(distribution=distribution)


@pytest.mark.parametrize("curvature", [True, 10, CurvatureScale, {"interval": 3}], ids=repr)
def test_curvature_must_be_a_curvature_scale(curvature):
    with pytest.raises(TypeError, match=r"curvature=flatreg\.CurvatureScale\(interval=10\)"):
        make(curvature=curvature)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("interval", 0), ("decay", 1.1), ("rho", -1.0), ("gamma", float("nan")), ("eps", -0.1)],
)
def test_curvature_settings_are_checked(setting, value):
    with pytest.raises(ValueError, match=rf"{setting} must be "):
        make(curvature=CurvatureScale(**{setting: value}))
    with pytest.raises(TypeError, match=rf"CurvatureScale\({setting}=.*sigma can be a schedule"):
        make(curvature=CurvatureScale(**{setting: optax.constant_schedule(0.1)}))
