"""A classification data set in memory."""

import hashlib
from typing import NamedTuple

import numpy as np

from benchmarks.common.cli import UsageError


class Dataset(NamedTuple):
    """A data set for classification.

    Attributes:
      x_train: the training inputs: float32 of shape (examples, height, width, channels) for images
        and (examples, features) for tables; int32 of shape (examples, length) for text.
      y_train: their labels, int32, from 0 to `num_classes` - 1; for text, one label per character.
      x_test: the inputs for evaluation, from the test set or from a validation set.
      y_test: their labels.
      num_classes: the number of classes.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int

    def description(self) -> dict[str, object]:
        """Returns what the results record about the data, including a checksum of all arrays."""
        arrays = (self.x_train, self.y_train, self.x_test, self.y_test)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))
        return {
            "train_examples": len(self.x_train),
            "test_examples": len(self.x_test),
            "shape": list(self.x_train.shape[1:]),
            "classes": self.num_classes,
            "sha256": digest.hexdigest()[:16],
        }

    def check_training(self, batch_size: int, *, augment: bool = False) -> None:
        """Raises `UsageError` if a batch is too large, or if the inputs cannot be augmented."""
        examples = len(self.x_train)
        if batch_size > examples:
            raise UsageError(
                f"--batch-size {batch_size} is more than the {examples} training examples. "
                f"Give --batch-size {examples} or less."
            )
        if augment and self.x_train.ndim != 4:
            raise UsageError(
                f"--augment needs images, but an example here has shape {self.x_train.shape[1:]}. "
                "Leave it out, or save the examples as an array of shape (examples, height, width, "
                "channels)."
            )
