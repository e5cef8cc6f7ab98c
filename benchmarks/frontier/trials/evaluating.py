"""Evaluates a trained network: correct predictions, loss and calibration error."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 2048  # examples per call, which bounds the memory
BINS = 15  # of the calibration error


class Predictions(NamedTuple):
    """What a network predicts for some examples with known labels.

    Attributes:
      correct: whether each prediction is correct, in the shape of the labels.
      loss: the mean cross-entropy.
      calibration_error: the expected calibration error.
    """

    correct: np.ndarray
    loss: float
    calibration_error: float

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions."""
        return float(self.correct.mean())


def predict(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> Predictions:
    """Evaluates a network on all examples, in eval mode and in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        chunks = [
            _predict(model, variables, x[i : i + CHUNK], y[i : i + CHUNK])
            for i in range(0, len(x), CHUNK)
        ]
    correct, losses, confidence = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return Predictions(
        correct, float(np.mean(losses, dtype=np.float64)), calibration_error(confidence, correct)
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Returns the expected calibration error: the mean of |accuracy − confidence| over bins.

    The bins have equal widths and count by the predictions in them (Guo et al. 2017, arXiv
    1706.04599).

    Args:
      confidence: the probability of each prediction, in [0, 1], or NaN after a divergence.
      correct: whether it is correct.
    """
    if np.isnan(confidence).any():
        return math.nan
    bins = np.minimum((confidence.ravel() * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, correct.ravel() - confidence.ravel().astype(float), BINS)
    return float(np.abs(gaps).sum() / confidence.size)


@partial(jax.jit, static_argnums=0)
def _predict(
    model: nn.Module, variables: Any, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits: Any = model.apply(variables, x, train=False)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_probabilities, y[..., None], axis=-1)[..., 0]
    correct = log_probabilities.argmax(-1) == y
    return correct, losses, jnp.exp(log_probabilities.max(-1))
