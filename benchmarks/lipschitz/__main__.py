"""One network under each way to control its Lipschitz constant: what each costs and certifies.

    python -m benchmarks.lipschitz
    python -m benchmarks.lipschitz --data fashion_mnist --train-size 6000 --model cnn --seeds 3
    python -m benchmarks.lipschitz --sweep
    python -m benchmarks.lipschitz --wgan

All methods train from the same parameters on the same batches, an epoch each in turn. For each the
table has the test accuracy, the Lipschitz constant between what a search finds and what is proven,
the accuracy certified within some radii, that under noise, and the time of an epoch against plain.

Default strengths were chosen on the validation split of digits by `--sweep`, over three seeds for
the MLP and one for the CNN: among those that cost at most a point of accuracy the one that
certifies most, of penalties on input gradients the one that is most accurate under noise; which
leave the bound of the whole network loose, as they see the data alone. The grids, for both models:

    weight decay λ                         0.0001 0.0003 0.001 0.003 0.01 0.03
    spectral norm penalty λ                0.001 0.003 0.01 0.03 0.1 0.3
    orthogonality penalty λ                0.0003 0.001 0.003 0.01 0.03 0.1
    normalization and both projections c   1 1.4 1.7 2 2.4 2.8 4, of every kernel
    input-gradient penalty of the loss λ   0.003 0.01 0.03 0.1 0.3
    and of the margin λ                    0.001 0.003 0.01 0.03 0.1 0.3
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from benchmarks.common import data as _data
from benchmarks.common import progress as _progress
from benchmarks.common import results as _results
from benchmarks.common.cli import UsageError, exit_code
from benchmarks.compare import report as _report
from benchmarks.lipschitz import measuring as _lipschitz_measure
from benchmarks.lipschitz import methods as _lipschitz_methods
from benchmarks.lipschitz import options as _lipschitz_options
from benchmarks.lipschitz import plots as _lipschitz_plots
from benchmarks.lipschitz import report as _lipschitz_report
from benchmarks.lipschitz import training as _lipschitz_train
from benchmarks.lipschitz.options import Options
from benchmarks.lipschitz.wgan import run as _lipschitz_wgan_run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    kept = "Interrupted. The seeds that were finished are in results.json."
    return exit_code(lambda: run(argv), kept)


def run(argv: Sequence[str]) -> None:
    """Trains, measures, prints and writes."""
    options, places = _lipschitz_options.parse(argv)
    console = Console()
    if not console.is_terminal:  # a log file has no width, so give the table what it needs
        console = Console(width=200)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.lipschitz", *argv]),
        "revision": _results.revision(),
        "configuration": options._asdict(),
        "environment": _results.environment(),
    }
    if options.wgan:
        folder = _results.folder(places.out, "lipschitz-wgan", resume=False)
        _results.start(folder, record, resume=False)
        _lipschitz_wgan_run.run(folder, record, options, console)
        return
    methods = _lipschitz_methods.parse(options.methods, options.model, options.sweep)
    data = _data.load(options.data, places.data_dir, options.train_size, options.evaluate_on)
    if options.batch_size > len(data.x_train):
        raise UsageError(
            f"--batch-size {options.batch_size} is more than the {len(data.x_train)} training "
            f"examples. Give --batch-size {len(data.x_train)} or less."
        )
    name = f"lipschitz-{pathlib.Path(options.data).stem}-{options.model}"
    folder = _results.folder(places.out, name, resume=False)
    record |= {
        "methods": [method.label for method in methods],
        "dataset": data.description(),
        "measurement": _lipschitz_measure.SETTINGS
        | {"curve_radii": _lipschitz_measure.curve_radii(options).tolist()},
        "runs": [],
    }
    _results.start(folder, record, resume=False)
    for runs in _runs(options, methods, data, console):
        record["runs"] += runs
        _results.save(folder, record)
    _report_all(console, folder, record, options, methods)


def _runs(
    options: Options,
    methods: Sequence[_lipschitz_methods.Method],
    data: _data.Dataset,
    console: Console,
) -> Any:
    """Yields the finished runs of all methods, seed by seed."""
    network = _lipschitz_train.network(options.model, data)
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    measure = _lipschitz_measure.measurer(network, data, options)
    with console.status("Compiling"):
        programs = {
            method.label: _lipschitz_train.compiled(method, network, options, x, y)
            for method in methods
        }
    with _progress.reporting(console, options.seeds, options.seeds * options.epochs) as reporter:
        for seed in range(options.seeds):
            states: dict[str, _lipschitz_train.State] = {}
            epochs: dict[str, list[Any]] = {label: [] for label in programs}
            for one in _lipschitz_train.rounds(programs, states, seed, options, x, y):
                for label in programs:
                    epochs[label].append(
                        {"seconds_a_step": one.seconds[label], "train_loss": one.losses[label]}
                    )
                reporter.working(f"{len(programs)} methods", 1)
            runs = []
            for method in methods:
                measured = measure(programs[method.label].weights(states[method.label]))
                runs.append(
                    {
                        "method": method.label,
                        "seed": seed,
                        "epochs": epochs[method.label],
                        "measured": measured,
                    }
                )
            yield runs
            reporter.finished(f"seed {seed}, {len(programs)} methods")


def _report_all(
    console: Console,
    folder: pathlib.Path,
    record: _results.Results,
    options: Options,
    methods: Sequence[_lipschitz_methods.Method],
) -> None:
    """Writes the summary, the table and the plot, and prints the table and what it answers."""
    rows = _lipschitz_report.summarize(record["runs"], methods)
    report = _lipschitz_report.report(rows, options, record["dataset"])
    answer = (
        _chosen(_lipschitz_report.choice(rows))
        if options.sweep
        else _lipschitz_report.claim(record["runs"], rows)
    )
    if answer:
        report = report._replace(caption=f"{report.caption}\n\n{answer}")
    summary = [row.as_dict() for row in rows]
    _results.save(folder, record | {"summary": summary, "answer": answer})
    table = _report.markdown(report, record["command"])
    (folder / "table.md").write_text(table, encoding="utf-8")
    plot = _lipschitz_plots.draw(folder, rows, options)
    _report.show(console, report)
    console.print(f"Written to {folder}: {_results.FILE}, table.md, {plot}", soft_wrap=True)


def _chosen(strengths: dict[str, float]) -> str:
    """What a sweep found, to be copied."""
    return (
        "Chosen, at most a point of accuracy below plain: the most certified accuracy over the "
        "radii, of penalties on input gradients the most accuracy under noise: --methods "
        f"{','.join(f'{name}:{strength:g}' for name, strength in strengths.items())}"
    )


if __name__ == "__main__":
    sys.exit(main())
