"""The trained networks that a comparison keeps: an Orbax checkpoint a run, beside results.json."""

import pathlib
import shutil
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.common.cli import UsageError
from flatreg import checkpoint


def path(folder: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Where the network of a run is kept."""
    return folder / "models" / method.replace(":", "_") / str(seed)


def save(folder: pathlib.Path, method: str, seed: int, variables: Any) -> None:
    """Keeps a network; replaces one whose run never came to be recorded."""
    where = path(folder, method, seed)
    shutil.rmtree(where, ignore_errors=True)
    where.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(where, variables)


def restore(
    folder: pathlib.Path, method: str, seed: int, model: nn.Module, example: np.ndarray
) -> Any:
    """The variables of a network that was kept."""
    like = jax.eval_shape(lambda key: model.init(key, example, train=False), jax.random.key(0))
    where = path(folder, method, seed)
    try:
        return checkpoint.restore(where, like)
    except FileNotFoundError as error:
        networks = [p for p in folder.glob("models/*/*") if p.name.isdecimal()]
        kept = ", ".join(sorted(str(p.relative_to(folder / "models")) for p in networks))
        raise UsageError(
            f"No network of {method!r}, seed {seed} in {folder}: "
            + (f"there are {kept}." if kept else "give --save-models to benchmarks.compare.")
        ) from error
    except ValueError as error:
        raise UsageError(str(error).partition("Orbax says")[0].strip()) from error
