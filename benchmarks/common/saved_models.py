"""The trained networks that a comparison keeps: one Orbax checkpoint per run."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.common.cli import UsageError
from flatreg import checkpoint


def path(folder: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Returns the folder of the network of a run."""
    return folder / "models" / method.replace(":", "_") / str(seed)


def save(folder: pathlib.Path, method: str, seed: int, variables: Any) -> None:
    """Saves the variables of a network.

    An older network of the same run, whose results were not recorded because the job was
    interrupted, is renamed: `0` becomes `0-replaced-1`.
    """
    where = path(folder, method, seed)
    if where.exists():
        older = len(list(where.parent.glob(f"{seed}-replaced-*")))
        where.rename(where.with_name(f"{seed}-replaced-{older + 1}"))
    where.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(where, variables)


def restore(
    folder: pathlib.Path, method: str, seed: int, model: nn.Module, example: np.ndarray
) -> Any:
    """Returns the variables of a network that was saved.

    Args:
      folder: the folder of the results.
      method: the label of the method.
      seed: the seed of the run.
      model: the network.
      example: an input of the network, whose values are not used.

    Raises:
      UsageError: if there is no such network, or if it does not fit `model`.
    """
    like = jax.eval_shape(lambda key: model.init(key, example, train=False), jax.random.key(0))
    where = path(folder, method, seed)
    try:
        return checkpoint.restore(where, like)
    except FileNotFoundError as error:
        networks = [p for p in folder.glob("models/*/*") if p.name.isdecimal()]
        kept = ", ".join(sorted(str(p.relative_to(folder / "models")) for p in networks))
        raise UsageError(
            f"No network of {method!r}, seed {seed} in {folder}. "
            + (
                f"Saved networks: {kept}."
                if kept
                else "Run benchmarks.compare with --save-models to keep networks."
            )
        ) from error
    except ValueError as error:
        raise UsageError(str(error).partition("Orbax says")[0].strip()) from error
