"""A bed: the data and the network on which methods are compared, for tuning and for testing.

For tuning, a fifth of the training set is held out as the validation set. The test runs train on
the whole training set and evaluate on the test set. Where `--train-size` selects a part of the
training set, both train on so many examples. Label noise changes training labels only.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.data.dataset import Dataset
from benchmarks.common.data.label_noise import with_label_noise
from benchmarks.frontier.options import Options, budgets_of


class Split(NamedTuple):
    """Examples to train on and examples to evaluate on.

    Attributes:
      x: the training inputs, on the device. Those of the tuning split end with zeros, so that both
        splits have the same shape and one compiled program serves both.
      clean_labels: the labels of the training examples, without noise and without padding.
      x_evaluated: the inputs for evaluation, on the device.
      y_evaluated: their labels, which never have noise.
    """

    x: jax.Array
    clean_labels: np.ndarray
    x_evaluated: jax.Array
    y_evaluated: jax.Array

    def labels(self, num_classes: int, noise: float, seed: int) -> jax.Array:
        """Returns the training labels of a seed with label noise, padded like the inputs."""
        noisy = with_label_noise(self.clean_labels, num_classes, noise, seed)
        padding = [(0, len(self.x) - len(noisy)), *[(0, 0)] * (noisy.ndim - 1)]
        return jnp.asarray(np.pad(noisy, padding))


class Bed(NamedTuple):
    """What all trials and test runs share.

    Attributes:
      options: everything that decides a number.
      model: the network, in float32.
      tuning: the split whose evaluation set is the validation set.
      test: the split whose evaluation set is the test set.
      num_classes: the number of classes.
      reference: the reference number of gradients, the unit of the budgets.
      most_steps: the largest number of steps of a training. No method takes less than one gradient
        per step.
      description: what the results record about the data.
    """

    options: Options
    model: nn.Module
    tuning: Split
    test: Split
    num_classes: int
    reference: int
    most_steps: int
    description: dict[str, object]


def make(options: Options, model: nn.Module, tuning: Dataset, test: Dataset) -> Bed:
    """Makes a bed.

    Args:
      options: everything that decides a number.
      model: the network.
      tuning: the data set whose evaluation set is the validation set.
      test: the data set whose evaluation set is the test set.

    Raises:
      UsageError: if an option does not fit the data.
    """
    for data in (tuning, test):
        data.check_training(options.batch_size, augment=options.augment)
    reference = options.epochs * (len(test.x_train) // options.batch_size)
    size = max(len(test.x_train), len(tuning.x_train))
    return Bed(
        options=options,
        model=model,
        tuning=_split(tuning, size),
        test=_split(test, size),
        num_classes=test.num_classes,
        reference=reference,
        most_steps=max(1, int(max(budgets_of(options)) * reference)),
        description=test.description()
        | {
            "validation_examples": len(tuning.x_test),
            "test_predictions": test.y_test.size,
            "reference_gradients": reference,
        },
    )


def _split(data: Dataset, size: int) -> Split:
    padding = [(0, size - len(data.x_train)), *[(0, 0)] * (data.x_train.ndim - 1)]
    return Split(
        x=jnp.asarray(np.pad(data.x_train, padding)),
        clean_labels=data.y_train,
        x_evaluated=jnp.asarray(data.x_test),
        y_evaluated=jnp.asarray(data.y_test),
    )
