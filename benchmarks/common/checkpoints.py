"""The checkpoints of one training run: a folder a step, `DIR/100`, and a note of what run it is."""

import json
from typing import Any, TypeVar

import jax
from etils import epath

from benchmarks.common.cli import UsageError
from flatreg import checkpoint

State = TypeVar("State")

KEPT = 2  # the newest, and the one before it in case that the newest is damaged
NOTE = "configuration.json"


class Checkpoints:
    """Saves and restores the state of a run with this configuration; no folder saves nothing.

    All processes make one and call the same methods in the same order.
    """

    def __init__(self, folder: str | None, configuration: dict[str, Any]):
        self._folder = None if folder is None else epath.Path(folder)
        if self._folder is None:
            return
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"--checkpoint {folder} is a file: give a folder, new or of this run.")
        note = self._folder / NOTE
        if note.exists():
            _check_same_run(folder, note, configuration)
        elif self._folder.exists() and any(NOTE not in x.name for x in self._folder.iterdir()):
            raise UsageError(
                f"--checkpoint {folder} holds other files and no {NOTE}, so it is not of this "
                "command: give a new folder, or one that this command made."
            )
        elif jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".{NOTE}"  # renamed when whole, so that nobody reads a part
            draft.write_text(json.dumps(configuration, indent=2) + "\n")
            draft.rename(note)

    def latest_step(self) -> int | None:
        """How many steps the newest checkpoint has behind it; None without one."""
        return max(self._steps(), default=None)

    def restore(self, step: int, like: State) -> State:
        """The state after so many steps, on the devices that `like` names."""
        try:
            return checkpoint.restore(self._folder / str(step), like)
        except ValueError as error:
            reason = str(error).partition("Orbax says")[0].strip()  # which is pages long
            raise UsageError(
                f"{reason} To go on from the checkpoint before it, if there is one, delete "
                f"{self._folder / str(step)}."
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Saves the state after so many steps, and then drops what is older than the last two."""
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


def _check_same_run(folder: str, note: epath.Path, configuration: dict[str, Any]) -> None:
    try:
        saved = dict(json.loads(note.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{note} cannot be read ({error}), so nobody knows of which run --checkpoint {folder} "
            "is: give another folder."
        ) from error
    differences = [
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in configuration.items()
        if saved.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"--checkpoint {folder} is of another run: {'; '.join(differences)}. Give the options "
            "of that run to go on with it, or another folder to start anew."
        )
