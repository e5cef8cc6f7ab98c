"""What is measured of predictions: correctness, loss and calibration."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.frontier.trials import evaluating


class Fixed(nn.Module):
    """A network whose logits are its inputs."""

    @nn.compact
    def __call__(self, x, train):
        assert not train
        return x


@pytest.mark.parametrize("shape", [(30,), (6, 5)], ids=["images", "text"])
def test_predictions_match_numpy(shape, monkeypatch):
    monkeypatch.setattr(evaluating, "CHUNK", 4)  # several chunks, of which the last is smaller
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(*shape, 7)).astype(np.float32)
    labels = rng.integers(0, 7, shape)
    found = evaluating.predict(Fixed(), {}, jnp.asarray(logits), jnp.asarray(labels))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_label = np.take_along_axis(probabilities, labels[..., None], -1)
    np.testing.assert_array_equal(found.correct, logits.argmax(-1) == labels)
    assert found.loss == pytest.approx(-np.log(of_label).mean(), rel=1e-5)
    assert found.accuracy == np.mean(logits.argmax(-1) == labels)
    assert jax.tree.structure(found).num_leaves == 3


def test_calibration_error_by_hand():
    """In the bin of 0.61 and 0.65, 1 of 2 is correct; in that of 0.95, all 3; in that of 1, none.

    The error is (|1 - 1.26| + |3 - 2.85| + |0 - 1|) / 6.
    """
    confidence = np.array([0.61, 0.65, 0.95, 0.95, 0.95, 1.0])
    correct = np.array([True, False, True, True, True, False])
    # 0.95 and 1.0 share the last of the 15 bins: |3 - 3.85|.
    assert evaluating.calibration_error(confidence, correct) == pytest.approx(
        (abs(1 - 1.26) + abs(3 - 3.85)) / 6
    )


def test_calibrated_predictions_have_no_error():
    confidence = np.repeat([0.25, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    assert evaluating.calibration_error(confidence, correct) == pytest.approx(0)


def test_a_diverged_network_is_evaluated():
    """The probabilities and the calibration error are NaN, and the command continues."""
    x, y = jnp.ones((4, 3)), jnp.array([0, 1, 2, 0])
    found = evaluating.predict(Fixed(), {}, x * jnp.nan, y)
    assert np.isnan([found.loss, found.calibration_error]).all()
    assert found.correct.shape == (4,)
