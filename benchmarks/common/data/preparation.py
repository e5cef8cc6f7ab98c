"""Prepares a data set for training: checks, splits, subsamples and standardizes its arrays.

`loaders.py` reads the arrays.
"""

import numpy as np
from sklearn.model_selection import train_test_split

from benchmarks.common.cli import UsageError
from benchmarks.common.data import loaders, text
from benchmarks.common.data.dataset import Dataset

VALIDATION_FRACTION = 0.2


def load(name: str, data_dir: str | None, train_size: int | None, evaluate_on: str) -> Dataset:
    """Loads a data set and prepares it for training.

    Args:
      name: `digits`, `mnist`, `fashion_mnist`, `cifar10`, `text`, or the path of an `.npz` file.
      data_dir: a folder with local copies. If None, all named data sets except digits are
        downloaded from OpenML.
      train_size: the number of training examples to keep, with the classes in proportion. The
        selection is always the same. If None, all are kept.
      evaluate_on: `test`, or `validation` to hold out a fifth of the training set for evaluation
        (before `train_size` applies), so that hyperparameters can be chosen without looking at the
        test set.

    Returns:
      The data set. Its inputs are standardized float32 numbers or, for text, characters.

    Raises:
      UsageError: if the arrays are not a data set for classification or are too few.
    """
    if name == "text":
        return _text(train_size, evaluate_on)
    arrays = loaders.read(name, data_dir)
    num_classes = _check(arrays, name)
    x, y = _with_channels(arrays["x_train"]), arrays["y_train"].astype(np.int32)
    x_test, y_test = _with_channels(arrays["x_test"]), arrays["y_test"].astype(np.int32)

    if evaluate_on == "validation":
        held_out = round(VALIDATION_FRACTION * len(x))
        x, y, x_test, y_test = _split(x, y, len(x) - held_out, num_classes)
    train_size = _size(train_size, len(x), name)
    if train_size <= len(x) - num_classes:
        x, y, _, _ = _split(x, y, train_size, num_classes)
    else:
        # Shuffle in any case: curvature is measured on the first examples, and the examples of a
        # file may be sorted by class.
        order = np.random.default_rng(0).permutation(len(x))[:train_size]
        x, y = x[order], y[order]

    x, x_test = _rescale(x, x_test)
    return Dataset(x, y, x_test, y_test, num_classes)


def _text(train_size: int | None, evaluate_on: str) -> Dataset:
    """The text, of which the parts for training and evaluation are contiguous."""
    arrays = text.read()
    x, y, x_test, y_test = (arrays[key] for key in loaders.KEYS)
    num_classes = 1 + max(int(array.max()) for array in arrays.values())
    if evaluate_on == "validation":
        kept = len(x) - round(VALIDATION_FRACTION * len(x))
        x, y, x_test, y_test = x[:kept], y[:kept], x[kept:], y[kept:]
    train_size = _size(train_size, len(x), "text")
    return Dataset(x[:train_size], y[:train_size], x_test, y_test, num_classes)


def _size(train_size: int | None, examples: int, name: str) -> int:
    """Returns the number of training examples to keep."""
    if train_size is not None and train_size > examples:
        raise UsageError(
            f"--train-size {train_size} is more than the {examples} training examples of {name}. "
            f"Give --train-size {examples} or less, or leave it out to use all examples."
        )
    return examples if train_size is None else train_size


def _split(
    x: np.ndarray, y: np.ndarray, size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Splits off `size` examples with the classes in proportion; the split is always the same."""
    rest = len(x) - size
    if min(size, rest) < num_classes or np.bincount(y).min() < 2:
        raise UsageError(
            f"Cannot split {len(x)} training examples into {size} and {rest} such that both parts "
            f"contain each of the {num_classes} classes. Give a --train-size of {num_classes} or "
            "more; --evaluate-on validation may need a larger data set."
        )
    kept, other = train_test_split(np.arange(len(x)), train_size=size, stratify=y, random_state=0)
    return x[kept], y[kept], x[other], y[other]


def _with_channels(x: np.ndarray) -> np.ndarray:
    return x[..., None] if x.ndim == 3 else x


def _rescale(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardizes the inputs with the statistics of the training set.

    The mean of each feature, or of each channel of images, becomes zero. Features of tables are
    scaled to unit variance, images to a range of 1. Images of unit variance would be about three
    times as large, so that the first layer of an MLP would learn faster and memorize wrong labels
    sooner.
    """
    axes = tuple(range(train.ndim - 1))
    mean = train.mean(axes, dtype=np.float64).astype(np.float32)
    if train.ndim > 2:
        scale = np.asarray(max(float(np.abs(train).max()), 1e-12))
    else:
        scale = train.std(axes, dtype=np.float64)
        scale = np.where(scale > 0, scale, 1.0)  # a constant feature becomes 0
    scale = scale.astype(np.float32)
    return ((train - mean) / scale).astype(np.float32), ((test - mean) / scale).astype(np.float32)


def _check(arrays: dict[str, np.ndarray], name: str) -> int:
    """Raises unless the arrays are a classification data set; returns the number of classes."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (2, 3, 4) or x.dtype.kind not in "buif":
            raise UsageError(
                f"{name}: x_{part} is {x.dtype}{list(x.shape)}, but it must be a numeric array of "
                "shape (examples, features), (examples, height, width) or (examples, height, "
                "width, channels). Save it with "
                f"np.savez(path, x_{part}=x.astype(np.float32), ...)."
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise UsageError(
                f"{name}: x_{part} contains NaN or infinite values. Remove them before saving, for "
                "example with keep = np.isfinite(x.reshape(len(x), -1)).all(1)."
            )
        if y.dtype.kind not in "iu" or y.ndim != 1:
            raise UsageError(
                f"{name}: y_{part} is {y.dtype}{list(y.shape)}, but labels must be a 1-d array of "
                f"integers. Save it with np.savez(path, y_{part}=y.ravel().astype(np.int32), ...)."
            )
        if len(x) != len(y) or len(x) == 0:
            raise UsageError(
                f"{name}: x_{part} has {len(x)} examples and y_{part} has {len(y)} labels. They "
                "must have the same number, at least one. Save the labels of these examples."
            )
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise UsageError(
            f"{name}: training examples have shape {arrays['x_train'].shape[1:]} and test examples "
            f"have shape {arrays['x_test'].shape[1:]}. Save both with np.savez in the same shape."
        )
    num_classes = len(np.unique(arrays["y_train"]))
    for part in ("train", "test"):
        y = arrays[f"y_{part}"]
        if num_classes < 2 or y.min() < 0 or y.max() >= num_classes:
            raise UsageError(
                f"{name}: y_{part} runs from {y.min()} to {y.max()}, which is out of range for the "
                f"{num_classes} classes in y_train. Labels must be 0 to classes - 1, with at least "
                "two classes and with training examples of each class. Relabel the training set "
                "with classes, y_train = np.unique(y_train, return_inverse=True) and the test set "
                "with y_test = np.searchsorted(classes, y_test)."
            )
    return num_classes
