"""Label noise: wrong labels for a fraction of the training examples."""

import numpy as np


def with_label_noise(labels: np.ndarray, num_classes: int, noise: float, seed: int) -> np.ndarray:
    """Replaces a fraction of the labels by other classes (symmetric label noise).

    Args:
      labels: integer labels from 0 to `num_classes` - 1, of any shape.
      num_classes: the number of classes.
      noise: the fraction of wrong labels; their number is rounded to an integer.
      seed: decides which labels change, and to which of the other classes.

    Returns:
      A noisy copy of the labels.
    """
    rng = np.random.default_rng([seed, 1])
    wrong = rng.permutation(labels.size)[: round(noise * labels.size)]
    noisy = labels.flatten()
    noisy[wrong] += rng.integers(1, num_classes, len(wrong), dtype=noisy.dtype)
    return noisy.reshape(labels.shape) % num_classes
