"""The checkpoints of a distributed run, from which it resumes.

Each checkpoint is a folder named by its step, such as `DIR/100`. The file `configuration.json` next
to them stores which run they belong to.
"""

import json
from typing import Any, TypeVar

import jax
from etils import epath  # type: ignore[import-untyped]

from benchmarks.common.cli import UsageError
from flatreg import checkpoint

State = TypeVar("State")

KEPT = 2  # the newest one, and the one before it in case the newest one is damaged
CONFIGURATION = "configuration.json"


class Checkpoints:
    """Saves and restores the state of a run.

    All processes create one and call the same methods in the same order.

    Args:
      folder: the folder of the checkpoints, which is created if necessary. With None, nothing is
        saved.
      configuration: the settings that decide the trajectory. A run resumes only with the same ones.

    Raises:
      UsageError: if the folder belongs to another run or contains other files.
    """

    def __init__(self, folder: str | None, configuration: dict[str, Any]):
        self._folder: Any = None  # without a folder, nothing is saved
        if folder is None:
            return
        self._folder = path = epath.Path(folder)
        if path.exists() and not path.is_dir():
            raise UsageError(
                f"--checkpoint {folder} is a file: give a new folder, or the folder of this run."
            )
        file = path / CONFIGURATION
        if file.exists():
            _check_same_run(folder, file, configuration)
        elif path.exists() and any(CONFIGURATION not in x.name for x in path.iterdir()):
            raise UsageError(
                f"--checkpoint {folder} contains other files and no {CONFIGURATION}, so it was not "
                "made by this command: give a new folder, or one that this command made."
            )
        elif jax.process_index() == 0:
            path.mkdir(parents=True, exist_ok=True)
            # Renamed when it is complete, so that no process reads a part of it.
            draft = path / f".{CONFIGURATION}"
            draft.write_text(json.dumps(configuration, indent=2) + "\n")
            draft.rename(file)

    def latest_step(self) -> int | None:
        """Returns the number of steps of the newest checkpoint, or None without a checkpoint."""
        return max(self._steps(), default=None)

    def restore(self, step: int, like: State) -> State:
        """Returns the state of a checkpoint.

        Args:
          step: the number of steps of the checkpoint.
          like: the shapes and the shardings of the state.
        """
        try:
            return checkpoint.restore(self._folder / str(step), like)
        except ValueError as error:
            reason = str(error).partition("Orbax says")[0].strip()  # drops pages of details
            raise UsageError(
                f"{reason} To resume from the checkpoint before it, if there is one, delete "
                f"{self._folder / str(step)}."
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Saves the state after `step` steps, and deletes all but the two newest checkpoints."""
        if self._folder is None:
            return
        checkpoint.save(self._folder / str(step), state)
        if jax.process_index() == 0:
            for old in sorted(self._steps())[:-KEPT]:
                (self._folder / str(old)).rmtree()

    def _steps(self) -> list[int]:
        if self._folder is None or not self._folder.exists():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def _check_same_run(folder: str, file: epath.Path, configuration: dict[str, Any]) -> None:
    try:
        saved = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}), so it is unknown to which run --checkpoint {folder} "
            "belongs: give another folder."
        ) from error
    differences = [
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in configuration.items()
        if saved.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"--checkpoint {folder} belongs to another run: {'; '.join(differences)}. Give the "
            "options of that run to resume it, or another folder to start a new run."
        )
