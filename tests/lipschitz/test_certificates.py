"""Certified radii: they are exact for linear classifiers, and no attack succeeds within them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatreg import lipschitz
from tests.support.networks.lipschitz_networks import trained_network, upper_bound

pytestmark = pytest.mark.usefixtures("x64")


def linear_classifier():
    keys = jax.random.split(jax.random.key(0), 3)
    weights, bias = jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (4,))
    return (lambda w, x: x @ w + bias), weights, jax.random.normal(keys[2], (50, 6))


def certificates(name):
    network = trained_network(name)
    return network, network.x[:40], network.labels[:40], upper_bound(name)


def attacked(f, x, labels, radii, steps=15):
    """Whether projected gradient descent on the margin finds a misclassified point in the ball."""

    def margin(x):
        logits = f(x)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        others = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
        return own - others.max(axis=1)

    def scaled(d, length):
        flat = d.reshape(len(d), -1)
        norm = jnp.maximum(jnp.linalg.norm(flat, axis=1), 1e-99)
        return (flat * (length / norm)[:, None]).reshape(d.shape)

    def step(_, carry):
        d, fooled = carry
        height, pull = jax.vjp(lambda d: margin(x + d), d)
        (downhill,) = pull(-jnp.ones_like(height))
        d = d + scaled(downhill, radii / 5)
        length = jnp.linalg.norm(d.reshape(len(d), -1), axis=1)
        return scaled(d, jnp.minimum(length, radii)), fooled | (height <= 0)

    d = scaled(jax.random.normal(jax.random.key(1), x.shape, x.dtype), 0.5 * radii)
    d, fooled = jax.lax.fori_loop(0, steps, step, (d, jnp.zeros(len(x), bool)))
    return fooled | (margin(x + d) <= 0)


@pytest.mark.slow
def test_linear_classifiers_get_the_distance_to_the_boundary():
    """Slightly shorter perturbations keep the prediction, and slightly longer ones change it."""
    apply, weights, x = linear_classifier()
    logits = apply(weights, x)
    labels = jnp.argmax(logits, axis=1)
    pairs = lipschitz.lipschitz_bound(apply, weights, x).pairs
    radii = lipschitz.certified_radius(logits, labels, pairs)
    slopes = np.asarray(weights)[:, labels].T[:, :, None] - np.asarray(weights)  # (50, 6, 4)
    margins = logits[jnp.arange(50), labels][:, None] - logits
    distances = np.where(
        margins == 0, np.inf, margins / np.maximum(np.linalg.norm(slopes, axis=1), 1e-99)
    )
    np.testing.assert_allclose(radii, distances.min(axis=1), rtol=1e-9)
    away = slopes[np.arange(50), :, distances.argmin(axis=1)]
    away = away / np.linalg.norm(away, axis=1, keepdims=True)
    for share, survives in ((1 - 1e-9, True), (1 + 1e-9, False)):
        moved = apply(weights, x - share * radii[:, None] * away)
        assert ((jnp.argmax(moved, axis=1) == labels) == survives).all()


def test_a_bound_that_is_nan_certifies_nothing():
    logits, labels = jnp.array([[3.0, 1.0]]), jnp.zeros(1, int)
    for bound in (jnp.array(jnp.nan), jnp.full((2, 2), jnp.nan)):
        assert lipschitz.certified_accuracy(logits, labels, bound, 0.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.nightly)])
def test_no_attack_succeeds_inside_the_certified_radius(name):
    network, x, labels, bound = certificates(name)
    logits = network(x)
    correct = jnp.argmax(logits, axis=1) == labels
    assert correct.mean() > 0.5
    radii = lipschitz.certified_radius(logits, labels, bound.pairs)
    np.testing.assert_array_equal(radii > 0, correct)
    attack = jax.jit(lambda radii: attacked(network, x, labels, radii))
    assert not attack(radii)[correct].any()
    assert attack(30 * radii)[correct].mean() > 0.5  # farther out, the attack succeeds


@pytest.mark.nightly_except("mlp")
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_pairs_certify_more_than_the_plain_constant(name):
    network, x, labels, bound = certificates(name)
    plain, tighter = (
        lipschitz.certified_radius(network(x), labels, constant)
        for constant in (bound.upper, bound.pairs)
    )
    assert (tighter >= plain * (1 - 1e-12)).all()
    assert tighter.sum() > 1.05 * plain.sum()


def test_the_plain_radius_is_the_margin_over_root_two_l():
    """The radius is margin/(√2·L), 0 without a positive margin, and infinite for L = 0."""
    logits = jnp.array([[1.0, 4.0, 2.0], [5.0, 5.5, 0.0], [1.0, 1.0, 0.0], [3.0, 0.0, 1.0]])
    labels = jnp.array([1, 0, 0, 0])  # correct by 2, wrong, a tie, correct by 2
    radii = lipschitz.certified_radius(logits, labels, 0.5)
    np.testing.assert_allclose(radii, [2 / (0.5 * 2**0.5), 0, 0, 2 / (0.5 * 2**0.5)])
    assert (
        lipschitz.certified_radius(logits, labels, 0.0) == jnp.array([jnp.inf, 0, 0, jnp.inf])
    ).all()


def test_certified_accuracy_falls_from_the_accuracy_to_zero():
    network, x, labels, bound = certificates("mlp")
    logits = network(x)
    radii = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-4, 100.0, 30)])
    curve = jax.jit(lipschitz.certified_accuracy)(logits, labels, bound.pairs, radii)
    assert curve[0] == jnp.mean(jnp.argmax(logits, axis=1) == labels)
    assert (jnp.diff(curve) <= 0).all()
    assert curve[-1] == 0
    own = lipschitz.certified_radius(logits, labels, bound.pairs)
    expected = [float(np.mean((np.asarray(own) > 0) & (np.asarray(own) >= r))) for r in radii]
    np.testing.assert_allclose(curve, expected)
    assert lipschitz.certified_accuracy(logits, labels, bound.pairs, 0.0) == curve[0]


def test_bfloat16_logits_are_compared_in_float32():
    logits = jnp.array([[3.0, 1.0]], jnp.bfloat16)
    assert lipschitz.certified_radius(logits, jnp.array([0]), 1.0).dtype in (
        jnp.float32,
        jnp.float64,
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((jnp.ones(3), jnp.ones(3, int), 1.0), "logits must have"),
        ((jnp.ones((3, 2)), jnp.ones((3, 2), int), 1.0), "one-hot"),
        (
            (jnp.ones((3, 2)), jnp.ones(3, int), jnp.ones(3)),
            r"number or an array .*\(2, 2\)",
        ),
        ((jnp.ones((3, 2)), jnp.ones(3, int), -1.0), "lipschitz must be"),
    ],
)
def test_errors_show_what_is_valid(arguments, match):
    with pytest.raises(ValueError, match=match):
        lipschitz.certified_radius(*arguments)


def test_a_whole_bound_raises_an_error_that_names_its_fields():
    bound = lipschitz.LipschitzBound(jnp.ones(()), jnp.ones((2, 2)), {"layer": jnp.ones(())})
    for given in (bound, bound._replace(pairs=None).pairs):
        with pytest.raises(TypeError, match=r"pass bound\.pairs, or bound\.upper"):
            lipschitz.certified_radius(jnp.ones((3, 2)), jnp.ones(3, int), given)


def test_negative_radii_raise():
    with pytest.raises(ValueError, match="radii must be"):
        lipschitz.certified_accuracy(jnp.ones((3, 2)), jnp.ones(3, int), 1.0, -1.0)
