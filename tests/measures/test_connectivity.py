"""Barriers along segments and trained Bézier paths, and BatchNorm statistics along them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatreg import measures, plots
from tests.support.trained import adam, batch_loss, digits, trained

KEY = jax.random.key(0)


def ring(w):
    """A loss that is zero on the unit circle."""
    return (jnp.sum(w**2) - 1) ** 2


def test_the_barrier_of_a_convex_loss_is_zero():
    a, b = jax.random.normal(KEY, (2, 3))
    found = measures.barrier(lambda w: jnp.sum(jnp.cosh(w)) + 3, a, b)
    assert found.value == 0
    np.testing.assert_allclose(found.losses[0], jnp.sum(jnp.cosh(a)) + 3, rtol=1e-6)


def test_the_barrier_is_the_height_above_the_line():
    """w² − w⁴ + 2w from −1 to 1: the line is 2w, and the height is largest at w = ±√½."""
    loss_fn = lambda w: jnp.sum(w**2 - w**4 + 2 * w)  # noqa: E731
    found = measures.barrier(loss_fn, -jnp.ones(1), jnp.ones(1), points=201)
    np.testing.assert_allclose(found.value, 0.25, rtol=1e-3)
    np.testing.assert_allclose(abs(2 * found.position - 1), 0.5**0.5, atol=0.01)
    assert found.standard_error == 0


def test_the_standard_error_is_that_over_the_examples():
    """Loss i is sᵢ·ring, so the heights are multiples of each other."""
    s = jnp.array([1.0, 2.0, 4.0, 5.0])
    a, b = jnp.eye(2)
    found = measures.barrier(lambda w: s * ring(w), a, b)
    np.testing.assert_allclose(found.value, 3 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, 0.25 * np.std(s, ddof=1) / 2, rtol=1e-5)


def test_a_trained_path_goes_around_the_barrier():
    a, b = jnp.eye(2)
    train = jax.jit(functools.partial(measures.bezier_path, ring))
    path = train(a, b, KEY)
    assert measures.barrier(ring, a, b).value > 0.2
    assert path.value < 0.01
    t = jnp.array([0.0, 0.3, 1.0])
    points = jax.vmap(lambda t: measures.bezier_point(a, path.control, b, t))(t)
    c = path.control
    np.testing.assert_allclose(points[::2], [a, b], atol=1e-7)
    np.testing.assert_allclose(points[1], 0.49 * a + 0.42 * c + 0.09 * b, rtol=1e-5)
    untrained = measures.bezier_path(ring, a, b, KEY, steps=0)
    np.testing.assert_allclose(untrained.losses, measures.barrier(ring, a, b).losses, rtol=1e-5)


def test_statistics_are_recomputed_along_the_path():
    """With stale statistics a rescaled solution looks bad, and with its own it does not."""
    model = nn.BatchNorm(use_running_average=None, momentum=0.0)
    x = 3 + 2 * jax.random.normal(KEY, (4, 16, 5))
    variables = model.init(KEY, x[0], use_running_average=False)

    def normalized(w, statistics):
        inputs = w * x.reshape(-1, 5)
        outputs = model.apply({**variables, "batch_stats": statistics}, inputs, True)
        return jnp.mean((jnp.mean(outputs**2, axis=0) - 1) ** 2)

    def statistics_fn(w, batch):
        return model.apply(variables, w * batch, False, mutable="batch_stats")[1]["batch_stats"]

    loss_fn = measures.with_batch_statistics(normalized, statistics_fn, x)
    stale = functools.partial(normalized, statistics=statistics_fn(1.0, x[0]))
    assert loss_fn(jnp.float32(10.0)) < 0.05 < 100 < stale(jnp.float32(10.0))
    expected = np.mean([np.mean(batch, axis=0) for batch in x], axis=0)
    mean = measures.with_batch_statistics(lambda w, s: jnp.sum(s["mean"]), statistics_fn, x)
    np.testing.assert_allclose(mean(jnp.float32(1.0)), expected.sum(), rtol=1e-5)
    assert measures.barrier(loss_fn, jnp.float32(1.0), jnp.float32(10.0), points=5).value < 0.05


def test_wrong_ends_and_losses_are_errors():
    with pytest.raises(ValueError, match="two solutions of the same network"):
        measures.barrier(ring, jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match=r"lambda params: loss_fn\(params\)\[0\]"):
        measures.bezier_path(lambda w: (ring(w), 0), jnp.ones(2), jnp.ones(2), KEY)
    with pytest.raises(ValueError, match="points must be at least 3"):
        measures.barrier(ring, jnp.ones(2), jnp.ones(2), points=2)
    with pytest.raises(ValueError, match=r"start=path\.control"):
        measures.bezier_path(ring, jnp.ones(2), jnp.ones(2), KEY, start=jnp.ones(3))


@pytest.mark.slow
def test_a_plot_of_a_path_shows_its_losses_and_the_line():
    found = measures.barrier(lambda w: jnp.sum(w**2 - w**4 + 2 * w), -jnp.ones(1), jnp.ones(1))
    ax = plots.plot_path(found, label="segment")
    curve, line = ax.lines
    np.testing.assert_allclose(curve.get_xydata(), np.stack(found[3:5], axis=1))
    np.testing.assert_allclose(line.get_xydata(), [[0, -2], [1, 2]], rtol=1e-6)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["segment"]
    assert plots.plot_path(found, ax=ax) is ax
    assert ax.lines[2].get_color() != curve.get_color()


@pytest.mark.slow
def test_two_solutions_on_digits_are_connected_by_a_path():
    """Solutions from different initializations: a barrier above its error, and a low path."""
    data = jax.tree.map(jnp.asarray, digits())
    random = jax.tree.map(
        lambda w: jax.random.normal(jax.random.key(w.size), w.shape) * w.std(), trained()
    )
    other = adam(batch_loss, random, data, 300)

    def losses(params):
        x, labels = data
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    line = jax.jit(functools.partial(measures.barrier, losses))(trained(), other)
    path = jax.jit(functools.partial(measures.bezier_path, losses, steps=1000))(
        trained(), other, KEY
    )
    assert line.value > 10 * line.standard_error > 0
    assert path.value < line.value / 10
