"""Loads a classification data set: standardized float32 inputs and integer labels, in memory.

Images are `(examples, height, width, channels)`, tables `(examples, features)`. Where the arrays
come from is `_sources.py`; this file checks, splits, subsamples and standardizes them.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from benchmarks.common import sources as _sources
from benchmarks.common.cli import UsageError

VALIDATION_FRACTION = 0.2
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Dataset(NamedTuple):
    """Training and evaluation examples; the latter are the test set or a validation set."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int

    def description(self) -> dict[str, object]:
        """What `results.json` keeps of the data, with a checksum to know them by."""
        arrays = (self.x_train, self.y_train, self.x_test, self.y_test)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))
        return {
            "train_examples": len(self.x_train),
            "test_examples": len(self.x_test),
            "shape": list(self.x_train.shape[1:]),
            "classes": self.num_classes,
            "sha256": digest.hexdigest()[:16],
        }


def load(name: str, data_dir: str | None, train_size: int | None, evaluate_on: str) -> Dataset:
    """Reads the data set `name` (or `PATH.npz`) and prepares it.

    Args:
      name: `digits`, `mnist`, `fashion_mnist`, `cifar10` or the path of an `.npz` file.
      data_dir: a folder with local copies; without it, named sets but digits come from OpenML.
      train_size: keep this many training examples, drawn once, stratified; `None` keeps all.
      evaluate_on: `test`, or `validation` to hold out a fifth of the training set (before
        `train_size` is applied) and evaluate there, so that hyperparameters can be chosen
        without looking at the test set.
    """
    arrays = _sources.read(name, data_dir)
    num_classes = _check(arrays, name)
    x, y = _with_channels(arrays["x_train"]), arrays["y_train"].astype(np.int32)
    x_test, y_test = _with_channels(arrays["x_test"]), arrays["y_test"].astype(np.int32)

    if evaluate_on == "validation":
        held_out = round(VALIDATION_FRACTION * len(x))
        x, y, x_test, y_test = _split(x, y, len(x) - held_out, num_classes)
    train_size = len(x) if train_size is None else train_size
    if train_size > len(x):
        raise UsageError(
            f"--train-size {train_size} asks for more than the {len(x)} training examples that "
            f"{name} has here. Give --train-size {len(x)} or less, or leave it out to use all."
        )
    if train_size <= len(x) - num_classes:
        x, y, _, _ = _split(x, y, train_size, num_classes)
    else:
        # Shuffled all the same: curvature is measured on the first examples, and a file may be
        # sorted by class.
        order = np.random.default_rng(0).permutation(len(x))[:train_size]
        x, y = x[order], y[order]

    x, x_test = _rescale(x, x_test)
    return Dataset(x, y, x_test, y_test, num_classes)


def with_label_noise(labels: np.ndarray, num_classes: int, noise: float, seed: int) -> np.ndarray:
    """Symmetric noise: a fraction of the labels, to one label, becomes another class at random."""
    rng = np.random.default_rng([seed, 1])
    wrong = rng.permutation(len(labels))[: round(noise * len(labels))]
    noisy = labels.copy()
    noisy[wrong] += rng.integers(1, num_classes, len(wrong), dtype=noisy.dtype)
    return noisy % num_classes


def _split(
    x: np.ndarray, y: np.ndarray, size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Splits off `size` examples, with the classes in proportion, always in the same way."""
    rest = len(x) - size
    if min(size, rest) < num_classes or np.bincount(y).min() < 2:
        raise UsageError(
            f"Cannot split {len(x)} training examples into {size} and {rest} with each of the "
            f"{num_classes} classes in both parts. Give a --train-size of {num_classes} or more, "
            "and with --evaluate-on validation a larger data set."
        )
    kept, other = train_test_split(np.arange(len(x)), train_size=size, stratify=y, random_state=0)
    return x[kept], y[kept], x[other], y[other]


def _with_channels(x: np.ndarray) -> np.ndarray:
    return x[..., None] if x.ndim == 3 else x


def _rescale(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zero mean per channel of an image or feature of a table, by the training set's statistics.

    Features of a table get unit variance. Images get a range of 1: divided by their standard
    deviation instead, they would be inputs about three times larger, which speeds up the first
    layer of an MLP and with it the memorizing of wrong labels.
    """
    axes = tuple(range(train.ndim - 1))
    mean = train.mean(axes, dtype=np.float64)
    if train.ndim > 2:
        scale = max(float(np.abs(train).max()), 1e-12)
    else:
        scale = train.std(axes, dtype=np.float64)
        scale = np.where(scale > 0, scale, 1.0)  # a feature that never changes stays at 0
    mean, scale = np.float32(mean), np.float32(scale)
    return tuple(((x - mean) / scale).astype(np.float32) for x in (train, test))


def _check(arrays: dict[str, np.ndarray], name: str) -> int:
    """Raises unless the arrays are a classification data set; returns the number of classes."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (2, 3, 4) or x.dtype.kind not in "buif":
            raise UsageError(
                f"{name}: x_{part} is {x.dtype}{list(x.shape)}, but it must be a numeric array of "
                "(examples, features), (examples, height, width) or (examples, height, width, "
                f"channels). Save it as np.savez(path, x_{part}=x.astype(np.float32), ...)."
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise UsageError(
                f"{name}: x_{part} holds NaN or infinite values. Remove them before saving, for "
                f"example with keep = np.isfinite(x.reshape(len(x), -1)).all(1)."
            )
        if y.dtype.kind not in "iu" or y.ndim != 1:
            raise UsageError(
                f"{name}: y_{part} is {y.dtype}{list(y.shape)}, but labels must be a flat array of "
                f"integers. Save it as np.savez(path, y_{part}=y.ravel().astype(np.int32), ...)."
            )
        if len(x) != len(y) or len(x) == 0:
            raise UsageError(
                f"{name}: x_{part} has {len(x)} examples and y_{part} {len(y)} labels; both must "
                "be the same number, at least one. Save the two arrays from the same selection."
            )
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise UsageError(
            f"{name}: training examples have the shape {arrays['x_train'].shape[1:]} and test "
            f"examples {arrays['x_test'].shape[1:]}. Save both with np.savez in the same shape."
        )
    num_classes = len(np.unique(arrays["y_train"]))
    for part in ("train", "test"):
        y = arrays[f"y_{part}"]
        if num_classes < 2 or y.min() < 0 or y.max() >= num_classes:
            raise UsageError(
                f"{name}: y_{part} runs from {y.min()} to {y.max()}, out of range for the "
                f"{num_classes} classes that y_train holds; labels must be 0 to classes - 1, with "
                "two classes or more and training examples of each. Relabel with classes, y_train "
                "= np.unique(y_train, return_inverse=True), and the test labels with "
                "np.searchsorted(classes, y_test)."
            )
    return num_classes
