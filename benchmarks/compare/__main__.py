"""Trains the plain optimizer and each method side by side, and says what each method bought.

    python -m benchmarks.compare
    python -m benchmarks.compare --data fashion_mnist --train-size 6000 --methods sgd,sam:rho=0.2

The story is `run`. Where the rest lives:

    _options.py   the command line            _progress.py   the bar
    _sources.py   files and downloads         _results.py    results.json, resuming
    _data.py      check, split, standardize   _summary.py    means, errors, what is best
    _models.py    mlp, cnn, resnet18, vit     _report.py     the table
    _methods.py   names, costs, grammar       _plots.py      curves, accuracy and flatness
    _train.py     the compiled step, looped   _labels.py     labels that do not overlap
    _measure.py   what a network ended as     _runs.py       trains and measures what is missing
    _convolution.py   fast on CPUs            _saved_models.py   for benchmarks.measure
    _augment.py   random crops and flips
"""

import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.common import data as _data
from benchmarks.common import measuring as _measure
from benchmarks.common import methods as _methods
from benchmarks.common import options as _options
from benchmarks.common import results as _results
from benchmarks.common import runs as _runs
from benchmarks.common import summary as _summary
from benchmarks.common.cli import INTERRUPTED, UsageError, exit_code
from benchmarks.common.models import build as _models
from benchmarks.common.runs import Bench
from benchmarks.compare import plots as _plots
from benchmarks.compare import report as _report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 after a mistake of usage, or 130 when interrupted."""
    return exit_code(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Parses, loads, trains what is not finished yet, and reports."""
    options, places = _options.parse(argv)
    methods = _methods.parse(options.methods, options.optimizer)
    data = _data.load(options.data, places.data_dir, options.train_size, options.evaluate_on)
    if options.batch_size > len(data.x_train):
        raise UsageError(
            f"--batch-size {options.batch_size} is more than the {len(data.x_train)} training "
            f"examples. Give --batch-size {len(data.x_train)} or less."
        )
    if options.augment and data.x_train.ndim != 4:
        raise UsageError(
            f"--augment needs images, but an example here has the shape {data.x_train.shape[1:]}. "
            "Leave it out, or save the examples as (examples, height, width, channels)."
        )
    model = _models.build(options.model, data)

    name = f"{pathlib.Path(options.data).stem}-{options.model.replace(':', '-')}"
    folder = _results.folder(places.out, name, places.resume)
    labels = [method.label for method in methods]
    fresh = {
        "command": shlex.join(["python", "-m", "benchmarks.compare", *argv]),
        "configuration": options._asdict() | {"methods": labels},
        "dataset": data.description(),
        "measurement": _measure.SETTINGS,
        "environment": _results.environment(),
        "runs": [],
    }
    results = _results.start(folder, fresh, places.resume)

    console = Console()
    if not console.is_terminal:  # a log file has no width, so give the table what it needs
        console = Console(width=200)
    finished = {(run["method"], run["seed"]) for run in results["runs"]}
    # Seeds outside, so that an interrupted job has compared all methods on some seeds.
    missing = [
        (method, seed)
        for seed in range(options.seeds)
        for method in methods
        if (method.label, seed) not in finished
    ]
    bench = Bench(model, data, options, folder if places.save_models else None)
    made_at = {"revision": _results.revision()}
    try:
        for record in _runs.finish(bench, missing, console):
            results["runs"].append(record | made_at)
            _results.save(folder, results)
    except KeyboardInterrupt:
        again = [word for word in argv if word != "--resume"]
        again += ["--resume"] if places.out else ["--out", str(folder), "--resume"]
        console.print(
            f"Interrupted. Finished runs kept in {folder}: {len(results['runs'])}. Go on with\n"
            f"{shlex.join(['python', '-m', 'benchmarks.compare', *again])}",
            soft_wrap=True,
        )
        return INTERRUPTED
    _report_all(console, folder, results, methods)
    return 0


def _report_all(
    console: Console,
    folder: pathlib.Path,
    results: _results.Results,
    methods: list[_methods.Method],
) -> None:
    """Writes the summary, the table and the plots, and prints the table."""
    configuration = results["configuration"]
    rows = _summary.summarize(results["runs"], methods, configuration["optimizer"])
    _results.save(folder, results | {"summary": [row.as_dict() for row in rows]})
    report = _report.report(rows, configuration, results["dataset"])
    (folder / "table.md").write_text(_report.markdown(report, results["command"]), encoding="utf-8")
    plots = _plots.draw(folder, results["runs"], rows, configuration)
    _report.show(console, report)
    console.print(
        f"Written to {folder}: {', '.join([_results.FILE, 'table.md', *plots])}", soft_wrap=True
    )


if __name__ == "__main__":
    # A polite kill is an interruption too; whatever happens, finished runs are on disk.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = main()
    if code == INTERRUPTED:
        # XLA's threads still compute what was dispatched, and crash if Python is torn down below.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
