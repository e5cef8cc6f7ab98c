"""The runs that claims are made of: comparisons, each in a folder of its own, resumed if there."""

import hashlib
import json
import pathlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import data as _data
from benchmarks.common import options as _options
from benchmarks.common import results as _results
from benchmarks.common import summary as _summary
from benchmarks.common.cli import INTERRUPTED, UsageError
from benchmarks.compare import __main__ as compare
from benchmarks.lipschitz import __main__ as lipschitz

TUNING_SEEDS = 3
ACCURACY = "test_accuracy"


class Setting(NamedTuple):
    """On what all claims are tried."""

    data: str
    data_dir: str | None
    train_size: int | None
    model: str
    epochs: int | None
    seeds: int
    quick: bool

    def recorded(self) -> dict[str, Any]:
        """Without the place of the data, which decides no number."""
        return {name: value for name, value in self._asdict().items() if name != "data_dir"}


class Recipe(NamedTuple):
    """How long all methods train."""

    epochs: int
    batch_size: int
    examples: int


class Runs(NamedTuple):
    """The records of one comparison, by method and seed."""

    records: dict[tuple[str, int], dict[str, Any]]

    def of(self, method: str, name: str) -> np.ndarray:
        """A measured quantity of a method, one value a seed; NaN where it diverged."""
        measured = [record["measured"] or {} for record in self._seeds(method)]
        return np.array([np.nan if m.get(name) is None else m[name] for m in measured])

    def along(self, method: str) -> list[list[dict[str, float]]]:
        """What was measured in the course of training, a list a seed."""
        return [
            [epoch | epoch["curvature"] for epoch in record["curve"] if "curvature" in epoch]
            for record in self._seeds(method)
        ]

    def renamed(self, suffix: str) -> dict[tuple[str, int], dict[str, Any]]:
        """The records with a suffix to the method, to be put beside those of other options."""
        return {(method + suffix, seed): one for (method, seed), one in self.records.items()}

    def time(self, method: str, plain: str) -> float:
        """A step's time in the plain one's."""
        return _summary.time_ratio(self._seeds(method), self._seeds(plain))

    def _seeds(self, method: str) -> list[dict[str, Any]]:
        return [record for (label, _), record in sorted(self.records.items()) if label == method]


class Bench:
    """Makes comparisons, or reads those that are there."""

    def __init__(self, out: pathlib.Path, setting: Setting) -> None:
        self.out, self.setting = out, setting
        self.commands: dict[str, str] = {}  # by folder

    def recipe(self) -> Recipe:
        """What `benchmarks.compare` makes of the setting."""
        s = self.setting
        arguments = [f"--data={s.data}"] + ([] if s.epochs is None else [f"--epochs={s.epochs}"])
        options, _ = _options.parse(arguments)
        data = _data.load(s.data, s.data_dir, s.train_size, "test")
        return Recipe(options.epochs, options.batch_size, len(data.x_train))

    def compare(
        self,
        methods: Sequence[str],
        options: Sequence[str] = (),
        *,
        flatness: str = "no",
        seeds: int | None = None,
        evaluate_on: str = "test",
    ) -> Runs:
        """The methods side by side, with further options of `benchmarks.compare`."""
        s, seeds = self.setting, seeds or self.setting.seeds
        arguments = [f"--model={s.model}", f"--evaluate-on={evaluate_on}", f"--flatness={flatness}"]
        if s.epochs is not None:
            arguments.append(f"--epochs={s.epochs}")
        # Runs of the same options share a folder; more methods and seeds add to it.
        results = self._make(
            compare.main,
            "compare",
            [*arguments, *options],
            [f"--methods={','.join(methods)}", f"--seeds={seeds}"],
            ["--resume"],
        )
        return Runs(
            {
                (run["method"], run["seed"]): run
                for run in results["runs"]
                if run["method"] in methods and run["seed"] < seeds
            }
        )

    def lipschitz(self, methods: Sequence[str]) -> list[dict[str, Any]]:
        """The runs of `benchmarks.lipschitz` with these methods; made at once or not at all."""
        arguments = [f"--methods={','.join(methods)}", f"--seeds={self.setting.seeds}"]
        if self.setting.epochs is not None:
            arguments.append(f"--epochs={self.setting.epochs}")
        results = self._make(lipschitz.main, "lipschitz", arguments, [], [])
        return list(results["runs"])

    def _make(
        self,
        main: Callable[[Sequence[str]], int],
        command: str,
        arguments: Sequence[str],
        growing: Sequence[str],
        resume: Sequence[str],
    ) -> dict[str, Any]:
        """Runs a command in the folder of its arguments and returns the results."""
        s = self.setting
        arguments = [f"--data={s.data}", *arguments]
        if s.train_size is not None:
            arguments.append(f"--train-size={s.train_size}")
        identity = shlex.join(sorted([command, *arguments]))
        name = hashlib.sha256(identity.encode()).hexdigest()[:10]
        folder = self.out / name
        file = folder / _results.FILE
        if not resume and file.exists():
            if "summary" in json.loads(file.read_text()):
                main = _nothing
            else:
                shutil.rmtree(folder)  # was interrupted, and cannot go on
        place = [f"--out={folder}", *resume]
        if s.data_dir is not None:
            place.append(f"--data-dir={s.data_dir}")
        code = main([*arguments, *growing, *place])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise UsageError(f"benchmarks.{command} {shlex.join(arguments)} failed, as said above.")
        results: dict[str, Any] = json.loads(file.read_text())
        self.commands[name] = f"{name}: {results['command']}"
        return results

    def tuned(self, grids: dict[str, Sequence[str]], options: Sequence[str] = ()) -> dict[str, str]:
        """Of each grid the setting with the best accuracy on the validation split."""
        if self.setting.quick:
            return {name: grid[len(grid) // 2] for name, grid in grids.items()}
        candidates = list(dict.fromkeys(label for grid in grids.values() for label in grid))
        runs = self.validated(candidates, options)

        def accuracy(label: str) -> float:
            return float(np.nan_to_num(runs.of(label, ACCURACY)).mean())

        return {name: max(grid, key=accuracy) for name, grid in grids.items()}

    def tuned_options(
        self, method: str, grid: Sequence[Sequence[str]], options: Sequence[str] = ()
    ) -> Sequence[str]:
        """Of several sets of options the one with which the method does best in validation."""
        if self.setting.quick:
            return grid[len(grid) // 2]
        accuracy = [
            np.nan_to_num(self.validated([method], [*options, *more]).of(method, ACCURACY)).mean()
            for more in grid
        ]
        return grid[int(np.argmax(accuracy))]

    def validated(self, methods: Sequence[str], options: Sequence[str]) -> Runs:
        """On the validation split, with the seeds that tuning takes."""
        seeds = min(TUNING_SEEDS, self.setting.seeds)
        return self.compare(methods, options, seeds=seeds, evaluate_on="validation")


def _nothing(arguments: Sequence[str]) -> int:
    return 0
