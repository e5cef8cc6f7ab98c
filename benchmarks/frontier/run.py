"""The frontier: finishes every cell that is missing, saves each run, and reports.

A cell is one method at one budget: tuning trials on a validation set, then test runs from other
seeds. Another command calls `run` with a job:

    options = complete(data="digits", methods="plain,sam", budgets="0.25,1")
    results = run(Job(options, pathlib.Path("results/mine")))
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.common import cli, measuring, progress, results
from benchmarks.common.data import preparation
from benchmarks.common.models import build
from benchmarks.frontier import journal, plots, processes, summary
from benchmarks.frontier.options import TUNING_SEED, Options, budgets_of, complete
from benchmarks.frontier.records import Key, Record, key_of
from benchmarks.frontier.table import tables
from benchmarks.frontier.trials import bed as beds
from benchmarks.frontier.trials.cells import Cell, Worker, ranges, step_seconds
from benchmarks.frontier.trials.contenders import named

# The code on which the numbers of a training depend.
TRAINING_CODE = (
    "flatreg/_core/**/*.py",
    "flatreg/_flax/**/*.py",
    "flatreg/linen/**/*.py",
    "flatreg/methods/**/*.py",
    "flatreg/wrappers/**/*.py",
    "flatreg/typing.py",
    "benchmarks/common/data/*.py",
    "benchmarks/common/models/*.py",
    "benchmarks/common/methods.py",
    "benchmarks/frontier/trials/*.py",
    "benchmarks/frontier/tuning.py",
    "benchmarks/frontier/options.py",
)


class Job(NamedTuple):
    """A frontier and the folder of its results.

    Attributes:
      options: everything that decides a number.
      folder: where the results go. Nothing in it is deleted that this command did not write.
      data_dir: a folder with local copies of the data sets.
      resume: whether to continue the results in the folder. Without it, a folder with results is
        an error.
      jobs: the number of processes.
      quick: whether the job only shows that the command works.
      command: the command that is recorded; None for one that gives the same options.
    """

    options: Options
    folder: pathlib.Path
    data_dir: str | None = None
    resume: bool = False
    jobs: int = 1
    quick: bool = False
    command: str | None = None


def run(job: Job, console: Console | None = None) -> results.Results:
    """Makes a frontier, prints its tables and writes the results.

    Args:
      job: the methods and budgets to compare, and the folder of the results.
      console: where progress and the tables are printed; None for the standard output.

    Returns:
      The results as they are saved.

    Raises:
      UsageError: if an option does not fit the data or the folder.
      KeyboardInterrupt: if the user interrupts; the finished runs are kept in the journal.
    """
    console = console or progress.console()
    options = job.options
    methods, budgets = list(named(options.methods)), budgets_of(options)
    bed = _load(options, job.data_dir)
    fresh = {
        "command": job.command or equivalent_command(options),
        "configuration": options._asdict() | {"methods": methods, "budgets": budgets},
        "dataset": bed.description,
        "measurement": measuring.SETTINGS | {"tuning_seed": TUNING_SEED},
        "training_code": results.training_code(TRAINING_CODE),
        "quick": job.quick,
        "environment": results.environment(),
    }
    known = journal.start(job.folder, fresh | {"runs": []}, job.resume)
    cells = [Cell(method, budget) for method in methods for budget in budgets]
    records = _finish(job, bed, cells, known, console)
    found = fresh | {
        "revision": results.revision(),
        "step_seconds": step_seconds(bed, methods),
        "runs": _ordered(records, methods),
    }
    journal.finish(job.folder, found)
    report(job.folder, found, console)
    return found


def report(folder: pathlib.Path, found: results.Results, console: Console | None = None) -> None:
    """Writes the tables and the figure of finished results, and prints the tables.

    Args:
      folder: where they go.
      found: the results, as `run` returns them or as `results.read` reads them.
      console: where the tables are printed.
    """
    console = console or progress.console()
    configuration, dataset = found["configuration"], found["dataset"]
    curves = curves_of(found)
    shown = tables(curves, configuration, dataset)
    texts = [
        table.markdown(level=min(i + 1, 2), commands=[found["command"]] if i == 0 else [])
        for i, table in enumerate(shown)
    ]
    (folder / "table.md").write_text("\n".join(texts), encoding="utf-8")
    figure = plots.draw(folder, curves, configuration)
    for table in shown[:2]:
        table.print(console)
    written = ", ".join([*results.FILES, "table.md", figure])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)


def curves_of(found: results.Results) -> list[summary.Curve]:
    """Returns the summary of finished results: one curve per method, the plain optimizer first."""
    configuration, dataset = found["configuration"], found["dataset"]
    methods = configuration["methods"]
    return summary.summarize(
        {key_of(record): record for record in found["runs"]},
        methods,
        configuration["budgets"],
        {method: ranges(method, configuration["optimizer"]) for method in methods},
        configuration | {"tuning_seed": found["measurement"]["tuning_seed"]},
        dataset["test_predictions"],
        found["step_seconds"],
        quick=found["quick"],
    )


def equivalent_command(options: Options) -> str:
    """Returns the command with these options; the ones that have their defaults are left out."""
    defaults = complete(data=options.data)  # They depend on the data only.
    return cli.equivalent_command("frontier", options._asdict(), defaults._asdict())


def _load(options: Options, data_dir: str | None) -> beds.Bed:
    tuning, test = (
        preparation.load(options.data, data_dir, options.train_size, evaluate_on)
        for evaluate_on in ("validation", "test")
    )
    return beds.make(options, build.build(options.model, test), tuning, test)


def _worker(options: Options, data_dir: str | None) -> processes.Work:
    """Makes the worker of a process."""
    worker = Worker(_load(options, data_dir))

    def work(argument: tuple[Cell, Mapping[Key, Record]], send: Callable[[Any], None]) -> None:
        worker.finish(*argument, send)

    return work


def _finish(
    job: Job,
    bed: beds.Bed,
    cells: Sequence[Cell],
    known: Mapping[Key, Record],
    console: Console,
) -> dict[Key, Record]:
    """Finishes all cells and returns all records."""
    records, options = dict(known), job.options
    # Rounds that widen a range come on top of this.
    planned = {
        Key(*cell, stage, number)
        for cell in cells
        for stage, count in (("tuning", options.trials), ("test", options.seeds))
        for number in range(count)
    }
    work = sum(key.budget for key in planned - known.keys())
    tasks = [
        processes.Task(
            cell.method,
            (cell, {key: known[key] for key in known if (key.method, key.budget) == cell}),
        )
        for cell in cells
    ]
    with progress.reporting(console, len(tasks), work or 1.0) as reporter:

        def received(record: Record) -> None:
            journal.append(job.folder, record)
            key = key_of(record)
            records[key] = record
            what = f"{key.method} at cost {key.budget:g}, {key.stage} {key.number}"
            reporter.working(what, key.budget if key in planned else 0.0)

        def finished(task: processes.Task) -> None:
            cell: Cell = task.argument[0]
            tests = [records[Key(*cell, "test", seed)] for seed in range(options.seeds)]
            accuracy = sum(record["accuracy"] for record in tests) / len(tests)
            reporter.finished(
                f"{cell.method} at cost {cell.budget:g}: test accuracy {accuracy:.2%}"
            )

        make = partial(_worker, options, job.data_dir)
        processes.work_on(make, tasks, job.jobs, received, finished)
    return records


def _ordered(records: Mapping[Key, Record], methods: Sequence[str]) -> list[Record]:
    """Returns the records in one order and with one set of entries, whatever made them first."""
    names = sorted({name for record in records.values() for name in record["hyperparameters"]})
    keys = sorted(
        records, key=lambda key: (methods.index(key.method), key.budget, key.stage, key.number)
    )
    ordered = []
    for key in keys:
        record = records[key]
        values = {name: record["hyperparameters"].get(name) for name in names}
        ordered.append(record | {"hyperparameters": values})
    return ordered
