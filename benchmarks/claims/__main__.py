"""Tests published claims on real data: the effects that a claim predicts, intervals and a verdict.

    python -m benchmarks.claims --quick
    python -m benchmarks.claims --data fashion_mnist --train-size 6000 --data-dir DIR
    python -m benchmarks.claims --model vit:width=48:depth=2:heads=2 --only zero_warmup,cheap_ascent
    python -m benchmarks.claims --judge benchmarks/results

A claim is a statement about runs of the comparison, `benchmarks.compare`. The comparisons that it
needs are made one after another, each in a folder of its own inside --out, so that every number can
be traced to a run. Claims share these runs, and an interrupted job can be continued by giving the
same command again. Hyperparameters are chosen on the validation split, with other seeds than those
of the test runs, from grids of the same size for the methods that are compared, before the test set
is used. The number of seeds is fixed before the first run.

Writes claims.json and table.md. Claims that are in claims.json already are kept.

With --judge, every verdict is computed again from the stored runs, without training and without the
data set, on any machine. If DIR holds several folders with claims, their verdicts are corrected
together for how many they are, as those of one page.

`registry.py` lists the claims, and `verdict.py` has the rule for a verdict.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.claims.experiments import (
    FIRST_TUNING_SEED,
    Experiments,
    Setting,
    recorded_lipschitz,
)
from benchmarks.claims.judging import FILE, Record, Statements, add, decide, judge, read, save
from benchmarks.claims.registry import CHECKS, CLAIMS
from benchmarks.claims.table import checks_table, table
from benchmarks.common import cli, progress, results
from benchmarks.common.cli import UsageError
from benchmarks.common.data import preparation
from benchmarks.common.models import build
from benchmarks.common.options import Options
from benchmarks.compare import run as compare
from benchmarks.lipschitz import options as lipschitz_options
from benchmarks.lipschitz import run as lipschitz

STATEMENTS: Statements = {**CLAIMS, **CHECKS}
QUICK = {"seeds": 2, "train_size": 300, "epochs": 3}
SEEDS = 5
RECORDED = results.ROOT / "benchmarks" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 after a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    again = "Interrupted. The finished runs are kept. To continue, give the same command again."
    return cli.exit_code(lambda: _command(argv), again)


def _command(argv: Sequence[str]) -> None:
    args = parse(argv)
    console = progress.console()
    if args.judge:
        records = judge(args.judge, {name: STATEMENTS[name] for name in args.only})
    else:
        name = results.name_of(args.data, args.model)
        out = pathlib.Path(args.out or f"results/claims-{name}")
        records = {out: run(out, args, cli.command_line("claims", argv), console)}
    for out, record in records.items():
        _write(out, record, console)


def _write(out: pathlib.Path, record: Record, console: Console) -> None:
    """Writes claims.json and table.md, and prints the tables."""
    save(out, record, list(STATEMENTS))
    report, checks = table(record), checks_table(record)
    found = [*record["claims"].values(), *record["checks"].values()]
    text = report.markdown(commands=dict.fromkeys(one["command"] for one in found))
    if record["checks"]:
        text += "\n" + checks.markdown(level=2)
    (out / "table.md").write_text(text, encoding="utf-8")
    report.print(console)
    if record["checks"]:
        console.print()
        checks.print(console)
    console.print(f"Written to {out}: {FILE}, table.md", soft_wrap=True, highlight=False)


def run(out: pathlib.Path, args: argparse.Namespace, command: str, console: Console) -> Record:
    """Makes the runs that the chosen claims need, judges the claims and writes claims.json.

    Args:
      out: the folder for claims.json, with one folder per comparison inside.
      args: the parsed command line.
      command: the command line, which is recorded.
      console: where progress is printed.

    Returns:
      All claims of the folder, in the order of the registry.

    Raises:
      UsageError: if the folder has claims that were tested on something else, or with another
        number of seeds.
    """
    data = preparation.load(args.data, args.data_dir, args.train_size, "test")
    setting = Setting(
        args.data,
        args.train_size,
        args.model,
        args.epochs,
        args.quick,
        len(data.x_train),
        FIRST_TUNING_SEED,
    )
    record = _started(out, setting, dict.fromkeys(args.only, args.seeds))
    save(out, record, list(STATEMENTS))

    def make_comparison(options: Options, folder: pathlib.Path) -> results.Results:
        job = compare.Job(options, folder, data_dir=args.data_dir, resume=True)
        return compare.train_missing(job, console, keep=_is_read)

    def make_lipschitz(options: dict[str, Any], folder: pathlib.Path) -> results.Results:
        return _lipschitz(options, folder, args.data_dir, console)

    for name in args.only:
        console.rule(name)
        experiments = Experiments(out, setting, args.seeds, make_comparison, make_lipschitz)
        add(record, name, STATEMENTS[name], experiments, command)
        record["environment"] = results.environment()
        decide(out, record)
        save(out, record, list(STATEMENTS))
    return record


def _is_read(column: str) -> bool:
    """Whether a column of curves.npz is read by a claim; the others are not kept."""
    read_ = ("curve.curvature.", "correct.", "epochs.seconds_per_step")
    return column.startswith(read_)


def _lipschitz(
    options: dict[str, Any], folder: pathlib.Path, data_dir: str | None, console: Console
) -> results.Results:
    """Runs `benchmarks.lipschitz`, or reads its results if it was finished in this folder."""
    if not results.exist(folder):
        completed = lipschitz_options.complete(**options)
        words = [f"{cli.flag(name)}={value}" for name, value in options.items() if value]
        command = cli.command_line("lipschitz", words)
        found = lipschitz.run(
            completed, folder, data_dir=data_dir, command=command, console=console
        )
        results.save(folder, found, keep=_is_read)
        return found
    try:
        return recorded_lipschitz(options, folder)
    except UsageError as error:
        raise UsageError(
            f"{folder} is from a run of benchmarks.lipschitz that was interrupted, and that "
            "command cannot resume. Delete this folder and give the same command again."
        ) from error


def _started(out: pathlib.Path, setting: Setting, seeds: dict[str, int]) -> Record:
    """The claims that were judged in this folder before, and how many seeds the next ones have."""
    if not (out / FILE).exists():
        page = [out.resolve().name]
        return {
            "setting": setting._asdict(),
            "seeds": seeds,
            "page": page,
            "claims": {},
            "checks": {},
        }
    record = read(out)
    if Setting(**record["setting"]) != setting:
        raise UsageError(
            f"{out / FILE} was made with {record['setting']}, and now the setting is "
            f"{setting._asdict()}. Name another folder with --out."
        )
    for name, count in seeds.items():
        kept = record["seeds"].get(name, count)
        if kept != count:
            raise UsageError(
                f"{name} was started with {kept} seeds in {out}. The number of seeds is fixed "
                f"before the first run, so that no result decides it: give --seeds {kept}, or "
                "name another folder with --out."
            )
    record["seeds"] |= seeds
    return record


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line, fills in the defaults and checks the ranges."""
    parser = cli.Parser(
        "claims",
        description="Tests published claims about training at flat minima on real data: trains "
        "what a claim needs, computes the effects that it predicts, and says whether it is "
        "reproduced.",
        epilog="The folder then has claims.json, table.md and one folder per comparison.",
    )
    data = cli.add_data(parser)
    cli.add_model(data, build.NAMES)
    data.add_argument(
        "--epochs",
        type=int,
        help="passes over the training set (default: as many as in benchmarks.compare)",
    )
    cli.add_seeds(data, f"{SEEDS}, with --quick {QUICK['seeds']}")
    parser.add_argument(
        "--only",
        help="claims and checks, separated by commas (default: all of them: "
        f"{', '.join(STATEMENTS)})",
    )
    cli.add_output(parser, default="results/claims-DATA-MODEL")
    parser.add_argument(
        "--judge",
        type=pathlib.Path,
        nargs="?",
        const=RECORDED,
        metavar="DIR",
        help="judge the claims in DIR again by the runs that are there, without training, and "
        "write claims.json and table.md; DIR is a folder that this command wrote, or one that "
        "holds several of them (default: benchmarks/results); takes no other option than --only",
    )
    cli.add_quick(
        parser,
        f"{QUICK['seeds']} seeds, {QUICK['train_size']} examples, {QUICK['epochs']} epochs, and "
        "hyperparameters that are not tuned",
    )
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(STATEMENTS)
    unknown = [name for name in names if name not in STATEMENTS]
    if unknown:
        raise UsageError(
            f"--only {','.join(unknown)} is unknown. Choose from {', '.join(STATEMENTS)}."
        )
    args.only = names
    if args.judge:
        _check_judge(args, parser)
    cli.fill_in(args, QUICK if args.quick else {"seeds": SEEDS})
    if args.seeds < 2:
        raise UsageError(f"--seeds {args.seeds} is out of range: an interval needs at least 2.")
    return args


def _check_judge(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name, value in vars(args).items():
        if name not in ("judge", "only") and value != parser.get_default(name):
            raise UsageError(
                f"--judge does not take {cli.flag(name)}: the setting is that of claims.json."
            )


if __name__ == "__main__":
    cli.start(main)
