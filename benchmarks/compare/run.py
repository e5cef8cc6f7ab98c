"""The comparison: trains and measures every run that is missing, saves each, and reports.

A run is one method from one seed. Another command calls `run` with a job:

    options = complete(methods="sgd,sam:rho=0.3", seeds=2)
    results = run(Job(options, pathlib.Path("results/mine")))
"""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.common import cli, measuring, progress, results, saved_models, training
from benchmarks.common import methods as grammar
from benchmarks.common.data import preparation
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.data.label_noise import with_label_noise
from benchmarks.common.methods import Method
from benchmarks.common.models import build
from benchmarks.common.options import Options, complete
from benchmarks.common.statistics.correctness import packed
from benchmarks.compare import plots, summary
from benchmarks.compare.table import comparison_table

CURVE_EXAMPLES = 2048  # evaluation examples for the curves; the final measurement uses all
# Programs that are compiled at a time: on a CPU, each program of a ResNet takes 2,000 of the 65,530
# memory maps of a process.
AT_ONCE = 16
ALONG = 10  # how often `--flatness along` measures during training
# The code that trains and measures.
TRAINING_CODE = (
    "flatreg/**/*.py",
    "benchmarks/common/data/*.py",
    "benchmarks/common/models/*.py",
    "benchmarks/common/measuring.py",
    "benchmarks/common/methods.py",
    "benchmarks/common/training.py",
    "benchmarks/compare/run.py",
)
Record = dict[str, Any]  # of one finished run


class Comparison(NamedTuple):
    """What all runs share.

    Attributes:
      model: the network.
      x: the training inputs, on the device, where the training step gathers its batches.
      labels: the training labels without noise.
      num_classes: the number of classes.
      test: the examples for evaluation, on the device.
      options: the options of the comparison.
      models: the folder in which trained networks are kept, or None.
    """

    model: nn.Module
    x: jax.Array
    labels: np.ndarray
    num_classes: int
    test: measuring.Examples
    options: Options
    models: pathlib.Path | None


class Job(NamedTuple):
    """A comparison and the folder of its results.

    Attributes:
      options: everything that decides a number.
      folder: where the results go. Nothing in it is deleted.
      data_dir: a folder with local copies of the data sets.
      resume: whether to continue the results in the folder, to which methods and seeds can be
        added. Without it, a folder with results is an error.
      save_models: whether to keep the trained networks.
      command: the command that is recorded; None for one that gives the same options.
    """

    options: Options
    folder: pathlib.Path
    data_dir: str | None = None
    resume: bool = False
    save_models: bool = False
    command: str | None = None


def run(job: Job, console: Console | None = None) -> results.Results:
    """Compares the methods of a job, prints the table and writes the results.

    Args:
      job: what is compared.
      console: where progress and the table are printed; None for the standard output.

    Returns:
      The results as they are saved, with all finished runs of the folder.

    Raises:
      UsageError: if an option does not fit the data or the folder.
      KeyboardInterrupt: if the user interrupts; the finished runs are saved.
    """
    console = console or progress.console()
    found = train_missing(job, console)
    methods = grammar.parse(job.options.methods, job.options.optimizer)
    _report(console, job.folder, found, methods)
    return found


def train_missing(
    job: Job, console: Console | None = None, keep: Callable[[str], bool] = lambda name: True
) -> results.Results:
    """Trains and measures the runs that a folder lacks, without a table or figures.

    Args:
      job: what is compared.
      console: where progress is printed.
      keep: which columns of curves.npz to write, as for `results.save`.

    Returns:
      The results with all finished runs of the folder.

    Raises:
      UsageError: if an option does not fit the data or the folder.
      KeyboardInterrupt: if the user interrupts; the finished runs are saved.
    """
    options, folder = job.options, job.folder
    console = console or progress.console()
    methods = grammar.parse(options.methods, options.optimizer)
    data = _load(options, job.data_dir)
    model = build.build(options.model, data)
    fresh = {
        "command": job.command or equivalent_command(options),
        "configuration": options._asdict() | {"methods": [method.label for method in methods]},
        "dataset": data.description(),
        "measurement": measuring.SETTINGS,
        "code": results.training_code(TRAINING_CODE),
        "environment": results.environment(),
        "runs": [],
    }
    found = results.start(folder, fresh, job.resume)
    finished = {(record["method"], record["seed"]) for record in found["runs"]}
    # The seeds are the outer loop, so that an interrupted job has compared all methods.
    missing = [
        (method, seed)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for method in methods
        if (method.label, seed) not in finished
    ]
    comparison = comparison_of(data, model, options, folder if job.save_models else None)
    made_at = {"revision": results.revision(), "machine": results.machine()}
    for record in _train(comparison, missing, console):
        found["runs"].append(record | made_at)
        results.save(folder, found, keep)
    return found


def comparison_of(
    data: Dataset, model: nn.Module, options: Options, models: pathlib.Path | None = None
) -> Comparison:
    """Returns what all runs share, with the data on the device."""
    return Comparison(
        model=model,
        x=jnp.asarray(data.x_train),
        labels=data.y_train,
        num_classes=data.num_classes,
        test=(jnp.asarray(data.x_test), jnp.asarray(data.y_test)),
        options=options,
        models=models,
    )


def equivalent_command(options: Options) -> str:
    """Returns the command with these options; the ones that have their defaults are left out."""
    # The defaults of the other options depend on these three, and these depend on the data only.
    three = {name: getattr(options, name) for name in ("data", "model", "optimizer")}
    of_data = complete(data=options.data)
    defaults = complete(**three)._replace(model=of_data.model, optimizer=of_data.optimizer)
    always = "data", "methods"
    return cli.equivalent_command("compare", options._asdict(), defaults._asdict(), always)


def _load(options: Options, data_dir: str | None) -> Dataset:
    data = preparation.load(options.data, data_dir, options.train_size, options.evaluate_on)
    data.check_training(options.batch_size, augment=options.augment)
    return data


def _train(
    comparison: Comparison, missing: Sequence[tuple[Method, int]], console: Console
) -> Iterator[Record]:
    """Yields the record of each missing (method, seed) as soon as that run is finished."""
    options, x, y = comparison.options, comparison.x, jnp.asarray(comparison.labels)
    work = sum(
        method.cost * training.training_steps(method, options, len(x)) for method, _ in missing
    )
    if not missing:
        console.print("All runs are finished: nothing is trained.")
        return
    programs_in_all = sum(len({method.label for method, _ in one}) for one in _groups(missing))
    with progress.reporting(console, len(missing), work, programs_in_all) as reporter:
        for group in _groups(missing):
            programs: dict[str, training.Program] = {}
            for method, _ in group:
                if method.label not in programs:
                    with reporter.compiling(method.label):
                        programs[method.label] = training.build(
                            method, comparison.model, options, x, y
                        )
            for method, seed in group:
                record = _record(comparison, method, programs[method.label], seed, reporter.working)
                yield record
                reporter.finished(_outcome(record))  # after the caller has saved the record


def _groups(missing: Sequence[tuple[Method, int]]) -> Iterator[list[tuple[Method, int]]]:
    """The runs of at most `AT_ONCE` methods at a time, whose programs are kept together."""
    labels = list(dict.fromkeys(method.label for method, _ in missing))
    for first in range(0, len(labels), AT_ONCE):
        group = labels[first : first + AT_ONCE]
        yield [(method, seed) for method, seed in missing if method.label in group]


def _record(
    comparison: Comparison,
    method: Method,
    program: training.Program,
    seed: int,
    working: Callable[[str, float], None],
) -> Record:
    """Trains a method from a seed and, unless the run diverged, measures the trained network."""
    model, options, (x_test, y_test) = comparison.model, comparison.options, comparison.test
    labels = with_label_noise(comparison.labels, comparison.num_classes, options.label_noise, seed)
    train = comparison.x, jnp.asarray(labels)
    curve: list[dict[str, Any]] = []
    steps = 0
    along = max(1, -(-program.steps // program.steps_per_epoch) // ALONG)
    for epoch in training.epochs(program, seed, *train):
        variables = epoch.state.variables
        test = measuring.evaluate(
            model, variables, x_test[:CURVE_EXAMPLES], y_test[:CURVE_EXAMPLES]
        )
        steps += epoch.steps
        curve.append(
            {
                "step": steps,
                "gradients": steps * method.cost,
                "seconds_per_step": epoch.seconds / epoch.steps,
                "train_loss": epoch.train_loss,
                "test_loss": test.loss,
                "test_accuracy": test.accuracy,
            }
        )
        diverged = not math.isfinite(epoch.train_loss + test.loss)
        if options.flatness == "along" and len(curve) % along == 0:
            curve[-1] |= {"curvature": measuring.curvature(model, variables, train, seed)}
        left = program.steps - steps if diverged else 0
        working(f"{method.label}, seed {seed}", (epoch.steps + left) * method.cost)
        if diverged:
            break
    record = {
        "method": method.label,
        "seed": seed,
        "diverged": diverged,
        "seconds_per_step": min(epoch["seconds_per_step"] for epoch in curve),
        "curve": curve,
    }
    if diverged:
        return record | {"measured": None}
    correct = measuring.correctness(model, variables, x_test, y_test)
    measured = measuring.measure(
        model,
        variables,
        train,
        comparison.test,
        options.label_noise,
        seed,
        flatness=options.flatness,
    )
    if comparison.models is not None:
        saved_models.save(comparison.models, method.label, seed, variables)
    return record | {"measured": measured._asdict(), "correct": packed(correct).tolist()}


def _outcome(record: Record) -> str:
    """One line about a finished run."""
    name = f"{record['method']}, seed {record['seed']}"
    if record["diverged"]:
        return f"{name}: diverged after {record['curve'][-1]['step']} steps"
    measured = record["measured"]
    flatness = measured["lambda_max"]
    flat = f", λ_max {flatness:.3g}" if math.isfinite(flatness) else ""
    return f"{name}: accuracy {measured['test_accuracy']:.2%}{flat}"


def _report(
    console: Console,
    folder: pathlib.Path,
    found: results.Results,
    methods: Sequence[Method],
) -> None:
    """Writes the results, the table and the figures, and prints the table."""
    configuration = found["configuration"]
    costs = {method.label: method.cost for method in methods}
    rows = summary.summarize(found["runs"], costs, configuration["optimizer"])
    results.save(folder, found)
    table = comparison_table(rows, configuration, found["dataset"])
    text = table.markdown(commands=[found["command"]])
    (folder / "table.md").write_text(text, encoding="utf-8")
    figures = plots.draw(folder, found["runs"], rows, configuration)
    table.print(console)
    written = ", ".join([*results.FILES, "table.md", *figures])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)
