"""Loads the arrays of digits, MNIST, Fashion-MNIST, CIFAR-10 or an `.npz` file.

Digits come with scikit-learn. The other named data sets are read from a local folder or downloaded
from OpenML.
"""

import importlib.util
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

from benchmarks.common.cli import UsageError

KEYS = ("x_train", "y_train", "x_test", "y_test")


class OpenMl(NamedTuple):
    """A data set on OpenML.

    Attributes:
      name: its name there.
      train_examples: the number of training examples, which come first.
      shape: the shape of an example, channels first.
      size: roughly the size of the download.
    """

    name: str
    train_examples: int
    shape: tuple[int, ...]
    size: str


OPENML = {
    "mnist": OpenMl("mnist_784", 60_000, (28, 28), "tens of megabytes"),
    "fashion_mnist": OpenMl("Fashion-MNIST", 60_000, (28, 28), "tens of megabytes"),
    "cifar10": OpenMl("CIFAR_10", 50_000, (3, 32, 32), "hundreds of megabytes"),
}
NAMES = ("digits", *OPENML, "text")


def read(name: str, data_dir: str | None) -> dict[str, np.ndarray]:
    """Returns the arrays `x_train`, `y_train`, `x_test` and `y_test` as stored, without checks.

    Args:
      name: one of `NAMES`, or the path of an `.npz` file.
      data_dir: a folder with `mnist.npz`, `fashion_mnist.npz` or `cifar10/`. If None, these data
        sets are downloaded from OpenML.
    """
    if name == "digits":
        return _digits()
    if name.endswith(".npz"):
        return _read_npz(pathlib.Path(name), KEYS)
    if name not in OPENML:
        raise UsageError(
            f"Unknown data set {name!r}. Choose --data from {', '.join(NAMES)}, or give --data "
            f"PATH.npz for a file with the arrays {', '.join(KEYS)}."
        )
    if data_dir is None:
        return _fetch(name)
    if name == "cifar10":
        return _read_parts(pathlib.Path(data_dir) / name)
    return _read_npz(pathlib.Path(data_dir) / f"{name}.npz", KEYS)


def _digits() -> dict[str, np.ndarray]:
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8)
    # digits lacks a test set: take a fifth with the classes in proportion, always the same one
    return dict(
        zip(
            ("x_train", "x_test", "y_train", "y_test"),
            train_test_split(x, y, test_size=0.2, stratify=y, random_state=0),
            strict=True,
        )
    )


def _read_parts(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """CIFAR-10 as files `train_0.npz`, `train_1.npz`, … and `test.npz`, each with x and y."""
    paths = sorted(folder.glob("train_*.npz"))
    if not paths:
        raise UsageError(
            f"No training data at {folder / 'train_*.npz'}. Set --data-dir to the folder that "
            f"contains {folder.name}/, or leave --data-dir out to download the data from OpenML."
        )
    parts = [_read_npz(path, ("x", "y")) for path in paths]
    test = _read_npz(folder / "test.npz", ("x", "y"))
    return {
        "x_train": np.concatenate([part["x"] for part in parts]),
        "y_train": np.concatenate([part["y"] for part in parts]),
        "x_test": test["x"],
        "y_test": test["y"],
    }


def _read_npz(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(
            f"No file at {path}. Give an existing file as --data PATH.npz, or set --data-dir to "
            f"the folder that contains {path.name}. Without --data-dir, {', '.join(OPENML)} are "
            "downloaded from OpenML; --data digits needs no file."
        )
    example = f"np.savez({path.name!r}, {', '.join(f'{key}={key}' for key in keys)})"
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise UsageError(
                    f"{path} lacks {', '.join(missing)}; its arrays are "
                    f"{', '.join(archive.files) or 'none'}. Save it with {example}."
                )
            return {key: archive[key] for key in keys}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # NumPy raises ValueError for object arrays and for files that are not archives.
        raise UsageError(
            f"{path} cannot be read as plain arrays ({error}). Object arrays are refused, because "
            "unpickling them could run code. Convert them with np.stack or .astype, and save the "
            f"file again with {example}."
        ) from error


def _fetch(name: str) -> dict[str, np.ndarray]:
    openml_name, train_examples, shape, size = OPENML[name]
    home = sklearn.datasets.get_data_home()
    print(
        f"Loading {openml_name} from OpenML with scikit-learn. The first time, this downloads "
        f"{size} and takes minutes; later it reads the cache in {home}.",
        flush=True,
    )
    # pandas parses faster and in less memory, but is not required
    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
    try:
        x, y = sklearn.datasets.fetch_openml(
            openml_name, version=1, return_X_y=True, as_frame=False, parser=parser
        )
    except (OSError, ValueError) as error:  # no network, or OpenML refuses
        raise UsageError(
            f"Cannot download {openml_name} from OpenML ({error}). Save the data yourself and give "
            f"--data {name} --data-dir FOLDER, or --data PATH.npz for a file with the arrays "
            f"{', '.join(KEYS)}; --data digits needs no network."
        ) from error
    x = x.reshape(-1, *shape)
    if len(shape) == 3:
        x = x.transpose(0, 2, 3, 1)
    y = y.astype(np.int32)
    first, rest = slice(train_examples), slice(train_examples, None)
    return {"x_train": x[first], "y_train": y[first], "x_test": x[rest], "y_test": y[rest]}
