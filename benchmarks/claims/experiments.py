"""The runs that verdicts are based on: each comparison has a folder, named after its options.

For example, `validation--label-noise-0.4` contains the runs on the validation split, which choose
hyperparameters, with 40% of the training labels wrong. The data set, the network and the length of
the training are the same for all claims. They appear in the name only if a claim changes them.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims.effects import ACCURACY, Runs
from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.common.options import Options, complete

TUNING_SEEDS = 3
# Tuning uses other seeds than the test runs: other initial parameters, batches and wrong labels.
FIRST_TUNING_SEED = 100
GROWING = ("methods", "seeds")  # options that add runs to a folder

Read = Callable[[pathlib.Path], results.Results]
# Each takes the options and the folder, and returns the results with the runs of these options.
Compare = Callable[[Options, pathlib.Path], results.Results]
Lipschitz = Callable[[dict[str, Any], pathlib.Path], results.Results]


class Setting(NamedTuple):
    """What all claims in a folder are tested on.

    Attributes:
      data: the data set, as for `python -m benchmarks.compare`.
      train_size: the number of training examples to use; None for all.
      model: the network, as for `python -m benchmarks.compare`.
      epochs: the length of the training; None for the default of the data set.
      quick: whether to skip the choice of hyperparameters.
      train_examples: how many training examples there are with this `train_size`.
      first_tuning_seed: the first of the seeds for tuning; 0 in older results, whose tuning shares
        seeds with the test runs.
    """

    data: str
    train_size: int | None
    model: str
    epochs: int | None
    quick: bool
    train_examples: int
    first_tuning_seed: int = 0


class MissingRunsError(UsageError):
    """Runs that a claim needs are not in the record."""


class Recipe(NamedTuple):
    """The length of the training, which is the same for all methods.

    Attributes:
      epochs: the number of passes over the training set.
      batch_size: examples per step.
      examples: examples in the training set.
    """

    epochs: int
    batch_size: int
    examples: int


class Experiments:
    """Makes the comparisons that claims need, or reads those that are finished.

    Args:
      out: the folder that contains one folder per comparison.
      setting: what all comparisons have in common.
      seeds: runs of each method for a verdict.
      compare: makes a comparison, or reads it: `recorded_comparison`.
      lipschitz: the same for the methods of `python -m benchmarks.lipschitz`.

    Attributes:
      folders: the names of the folders that were used so far.
    """

    def __init__(
        self,
        out: pathlib.Path,
        setting: Setting,
        seeds: int,
        compare: Compare,
        lipschitz: Lipschitz,
    ) -> None:
        self.setting = setting
        self.folders: list[str] = []
        self._out, self._seeds = out, seeds
        self._compare, self._lipschitz = compare, lipschitz

    def recipe(self) -> Recipe:
        """Returns the length of the training with the options that `benchmarks.compare` chooses."""
        options = complete(data=self.setting.data, epochs=self.setting.epochs)
        return Recipe(options.epochs, options.batch_size, self.setting.train_examples)

    def compare(
        self,
        methods: Sequence[str],
        options: Mapping[str, Any] | None = None,
        *,
        flatness: str = "no",
        seeds: range | None = None,
        evaluate_on: str = "test",
    ) -> Runs:
        """Compares methods.

        Args:
          methods: the methods with their hyperparameters, as for `--methods`.
          options: further options of the comparison, which override the setting.
          flatness: what to measure of the minima, as for `--flatness`.
          seeds: the seeds of the runs; None for those of all claims.
          evaluate_on: `test` or `validation`.

        Returns:
          The runs of these methods and seeds. More may be in the folder.
        """
        seeds = seeds or range(self._seeds)
        chosen = {"evaluate_on": evaluate_on, "flatness": flatness, **(options or {})}
        own = self._own({"data", "train_size", "model", "epochs"})
        completed = complete(
            **own | chosen, methods=",".join(methods), seeds=len(seeds), first_seed=seeds.start
        )
        name = comparison_name(chosen)
        found = self._compare(completed, self._out / name)
        self._used(name)
        records = {
            (run["method"], run["seed"]): run
            for run in found["runs"]
            if run["method"] in methods and run["seed"] in seeds
        }
        return Runs(records, found["dataset"]["test_examples"])

    def lipschitz(self, methods: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the runs of `benchmarks.lipschitz` with these methods."""
        own = self._own({"data", "train_size", "epochs"})
        options = own | {"methods": ",".join(methods), "seeds": self._seeds}
        name = "--".join(["lipschitz", *methods])
        found = self._lipschitz(options, self._out / name)
        self._used(name)
        return [run for run in found["runs"] if run["seed"] < self._seeds]

    def tuned(
        self, grids: Mapping[str, Sequence[str]], options: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Returns the method of each grid that is most accurate on the validation split.

        With `quick` it is the middle one of the grid, without training.
        """
        if self.setting.quick:
            return {name: grid[len(grid) // 2] for name, grid in grids.items()}
        candidates = list(dict.fromkeys(label for grid in grids.values() for label in grid))
        runs = self._validated(candidates, options)
        return {
            name: max(grid, key=lambda label: _accuracy(runs, label))
            for name, grid in grids.items()
        }

    def tuned_options(
        self, method: str, grid: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Returns the options of a grid with which a method is most accurate in validation."""
        if self.setting.quick:
            return grid[len(grid) // 2]
        return max(
            grid,
            key=lambda more: _accuracy(self._validated([method], {**options, **more}), method),
        )

    def _validated(self, methods: Sequence[str], options: Mapping[str, Any] | None) -> Runs:
        """Compares methods on the validation split, with the seeds that are used for tuning."""
        first = self.setting.first_tuning_seed
        seeds = range(first, first + min(TUNING_SEEDS, self._seeds))
        return self.compare(methods, options, seeds=seeds, evaluate_on="validation")

    def _own(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: value for name, value in self.setting._asdict().items() if name in names}

    def _used(self, name: str) -> None:
        if name not in self.folders:
            self.folders.append(name)


def _accuracy(runs: Runs, label: str) -> float:
    """The mean accuracy over the seeds, where a run that diverged counts as zero."""
    return float(np.nan_to_num(runs.of(label, ACCURACY)).mean())


def comparison_name(options: Mapping[str, Any]) -> str:
    """Returns the name of the folder of a comparison with these options.

    It is `test` or `validation`, followed by each option and its value, in the order of `Options`.
    Flatness that is not measured is left out. A short hash is appended only where the name does not
    determine the values, because they have characters that a name should not have.
    """
    parts, ambiguous = [str(options["evaluate_on"])], False
    for name in Options._fields:
        if name not in options or name == "evaluate_on" or options[name] == "no":
            continue
        value = options[name]
        text = f"{value:g}" if isinstance(value, float) else str(value)
        ambiguous |= re.fullmatch(r"[\w.:=]+", text) is None
        parts.append(f"{name.replace('_', '-')}-{re.sub(r'[^0-9A-Za-z_.]+', '-', text)}")
    if ambiguous:
        parts.append(hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:8])
    return "--".join(parts)


def recorded_comparison(
    options: Options, folder: pathlib.Path, read: Read = results.read
) -> results.Results:
    """Returns the results of a finished comparison.

    Args:
      options: the options of the comparison.
      folder: the folder of its results.
      read: reads them.

    Raises:
      MissingRunsError: if the folder lacks a run of these options.
      UsageError: if it was made with other options.
    """
    found = _recorded(folder, read)
    for name, value in options._asdict().items():
        kept = found["configuration"].get(name, value)
        if name not in GROWING and kept != value:
            raise UsageError(f"{folder} was made with {name} = {kept!r}, but {value!r} is needed.")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    _check_complete(folder, found, options.methods.split(","), seeds)
    return found


def recorded_lipschitz(
    options: dict[str, Any], folder: pathlib.Path, read: Read = results.read
) -> results.Results:
    """Returns the results of a finished run of `benchmarks.lipschitz` with these options.

    Raises:
      MissingRunsError: if the folder, which `read` reads, lacks a seed.
    """
    found = _recorded(folder, read)
    _check_complete(folder, found, found["methods"], range(options["seeds"]))
    return found


def _recorded(folder: pathlib.Path, read: Read) -> results.Results:
    if not results.exist(folder):
        raise MissingRunsError(
            f"{folder} does not contain results. Give the command without --judge."
        )
    return read(folder)


def _check_complete(
    folder: pathlib.Path, found: results.Results, methods: Iterable[str], seeds: range
) -> None:
    finished = {(run["method"], run["seed"]) for run in found["runs"]}
    for method in methods:
        for seed in seeds:
            if (method, seed) not in finished:
                raise MissingRunsError(
                    f"{folder} lacks the run of {method} with seed {seed}. Give the command "
                    "without --judge."
                )
