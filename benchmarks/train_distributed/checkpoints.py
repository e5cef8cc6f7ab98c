"""The checkpoints of a distributed run, from which it resumes.

Orbax writes them in the background, while the training continues. Each checkpoint is a folder named
by its step, such as `DIR/100`, with two items: the training state and the position of the batches.
The file `configuration.json` next to them stores which run they belong to.
"""

import json
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from etils import epath  # type: ignore[import-untyped]

from benchmarks.common.cli import UsageError
from benchmarks.train_distributed.batches import Batches
from flatreg import checkpoint

State = TypeVar("State")

KEPT = 2  # the newest one, and the one before it in case the newest one is damaged
CONFIGURATION = "configuration.json"
STATE, BATCHES = "state", "batches"  # the items of a checkpoint


class Checkpoints:
    """Saves and restores the state of a run, as a context manager that waits until all is saved.

    All processes create one and call the same methods in the same order.

    Args:
      folder: the folder of the checkpoints, which is created if necessary. With None, nothing is
        saved.
      configuration: the settings that decide the trajectory. A run resumes only with the same ones.

    Raises:
      UsageError: if the folder belongs to another run or contains other files.
    """

    def __init__(self, folder: str | None, configuration: dict[str, Any]):
        self._manager: Any = None  # without a folder, nothing is saved
        if folder is None:
            return
        self._folder = path = epath.Path(folder).resolve()
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
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT)
        self._manager = ocp.CheckpointManager(path, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until the checkpoints are complete. An error in the background is raised here."""
        if self._manager is not None:
            self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the number of steps of the newest checkpoint, or None without a checkpoint."""
        return None if self._manager is None else self._manager.latest_step()

    def restore(self, step: int, like: State, batches: Batches) -> State:
        """Returns the state of a checkpoint, and moves the batches to its position.

        Args:
          step: the number of steps of the checkpoint.
          like: the shapes and the shardings of the state.
          batches: the batches of the run.
        """
        folder = self._folder / str(step)
        position = ocp.args.Composite(**{BATCHES: ocp.args.JsonRestore()})
        try:
            state = checkpoint.restore(folder / STATE, like)
            batches.set_state(self._manager.restore(step, args=position)[BATCHES])
        except (ValueError, OSError) as error:
            reason = str(error).partition("Orbax says")[0].strip()  # drops pages of details
            raise UsageError(
                f"{reason} To resume from the checkpoint before it, if there is one, delete "
                f"{folder}."
            ) from error
        return state

    def save(self, step: int, state: Any, batches: Batches) -> None:
        """Saves the state after `step` steps in the background, and keeps the two newest ones.

        Returns when the arrays are copied, so that the next step can have them.

        Args:
          step: the number of steps.
          state: the training state.
          batches: the batches, of which `step` are used.
        """
        if self._manager is None:
            return
        items = {
            STATE: checkpoint.save_args(state),
            BATCHES: ocp.args.JsonSave(batches.get_state()),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))


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
