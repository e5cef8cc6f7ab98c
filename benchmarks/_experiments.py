"""The runs that claims are made of: comparisons, each in a folder of its own, resumed if there."""

import hashlib
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _results, compare
from benchmarks._errors import INTERRUPTED, UsageError

TUNING_SEEDS = 3


class Setting(NamedTuple):
    """On what all claims are tried."""

    data: str
    data_dir: str | None
    train_size: int | None
    seeds: int
    quick: bool

    def recorded(self) -> dict[str, Any]:
        """Without the place of the data, which decides no number."""
        return {name: value for name, value in self._asdict().items() if name != "data_dir"}


class Runs(NamedTuple):
    """The measured numbers of one comparison."""

    records: dict[tuple[str, int], dict[str, float]]

    def of(self, method: str, name: str) -> np.ndarray:
        """A measured quantity of a method, one value a seed; NaN where it diverged."""
        return np.array(
            [
                np.nan if measured is None or measured[name] is None else measured[name]
                for (label, _), measured in sorted(self.records.items())
                if label == method
            ]
        )


class Bench:
    """Makes comparisons, or reads those that are there."""

    def __init__(self, out: pathlib.Path, setting: Setting) -> None:
        self.out, self.setting = out, setting
        self.commands: dict[str, str] = {}  # by folder

    def compare(
        self,
        methods: Sequence[str],
        options: Sequence[str] = (),
        *,
        seeds: int | None = None,
        evaluate_on: str = "test",
    ) -> Runs:
        """The methods side by side, with further options of `benchmarks.compare`."""
        s = self.setting
        arguments = [f"--data={s.data}", f"--evaluate-on={evaluate_on}", *options]
        if s.train_size is not None:
            arguments.append(f"--train-size={s.train_size}")
        if s.quick and not any(option.startswith("--epochs") for option in options):
            arguments.append("--epochs=3")
        # Runs of the same options share a folder; more methods and seeds add to it.
        name = hashlib.sha256(shlex.join(sorted(arguments)).encode()).hexdigest()[:10]
        arguments += [f"--methods={','.join(methods)}", f"--seeds={seeds or s.seeds}"]
        folder = self.out / name
        place = [f"--out={folder}", "--resume"]
        if s.data_dir is not None:
            place.append(f"--data-dir={s.data_dir}")
        code = compare.main([*arguments, *place])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise UsageError(f"benchmarks.compare {shlex.join(arguments)} failed, as said above.")
        results = json.loads((folder / _results.FILE).read_text())
        self.commands[name] = f"{name}: {results['command']}"
        return Runs(
            {
                (run["method"], run["seed"]): run["measured"]
                for run in results["runs"]
                if run["method"] in methods and run["seed"] < (seeds or s.seeds)
            }
        )

    def tuned(self, grids: dict[str, Sequence[str]], options: Sequence[str] = ()) -> dict[str, str]:
        """Of each grid the setting with the best accuracy on the validation split."""
        if self.setting.quick:
            return {name: grid[len(grid) // 2] for name, grid in grids.items()}
        candidates = list(dict.fromkeys(label for grid in grids.values() for label in grid))
        seeds = min(TUNING_SEEDS, self.setting.seeds)
        runs = self.compare(candidates, options, seeds=seeds, evaluate_on="validation")

        def accuracy(label: str) -> float:
            return float(np.nan_to_num(runs.of(label, "test_accuracy")).mean())

        return {name: max(grid, key=accuracy) for name, grid in grids.items()}
