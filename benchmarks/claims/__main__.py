"""Tests published claims on real data: the effects that a claim predicts, intervals and a verdict.

    python -m benchmarks.claims --quick
    python -m benchmarks.claims --data fashion_mnist --train-size 6000 --data-dir DIR
    python -m benchmarks.claims --model vit:width=48:depth=2:heads=2 --only zero_warmup,cheap_ascent
    python -m benchmarks.claims --recompute --out benchmarks/results/claims-digits

A claim is a statement about runs of the comparison, `benchmarks.compare`. The comparisons that it
needs are made one after another, each in a folder of its own inside --out, so that every number can
be traced to a run. Claims share these runs, and an interrupted job can be continued by giving the
same command again. Hyperparameters are chosen on the validation split, from grids of the same size
for the methods that are compared, before the test set is used.

Writes claims.json and table.md. Claims that are in claims.json already are kept.

`registry.py` lists the claims, and `verdict.py` has the rule for a verdict.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.claims.experiments import (
    Experiments,
    Setting,
    recorded_comparison,
    recorded_lipschitz,
)
from benchmarks.claims.registry import CLAIMS
from benchmarks.claims.table import table
from benchmarks.claims.verdict import verdict
from benchmarks.common import cli, results
from benchmarks.common.cli import UsageError
from benchmarks.common.data import preparation
from benchmarks.common.models import build
from benchmarks.common.options import Options
from benchmarks.compare import run as compare
from benchmarks.lipschitz import options as lipschitz_options
from benchmarks.lipschitz import run as lipschitz

FILE = "claims.json"
QUICK = {"seeds": 2, "train_size": 300, "epochs": 3}
SEEDS = 5
WIDTH = 200  # of the output that does not go to a terminal
Record = dict[str, Any]  # the content of claims.json


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 after a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    again = "Interrupted. The finished runs are kept. To continue, give the same command again."
    return cli.exit_code(lambda: _command(argv), again)


def _command(argv: Sequence[str]) -> None:
    args = parse(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if args.recompute:
        out = pathlib.Path(args.out)
        record = recompute(out, args.only)
    else:
        name = f"{pathlib.Path(args.data).stem}-{args.model.replace(':', '-')}"
        out = pathlib.Path(args.out or f"results/claims-{name}")
        record = run(out, args, cli.command_line("claims", argv), console)
    claims = record["claims"]
    report = table(claims, record["setting"])
    commands = dict.fromkeys(claim["command"] for claim in claims.values())
    (out / "table.md").write_text(report.markdown(commands=commands), encoding="utf-8")
    report.print(console)
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
      UsageError: if the folder has claims that were tested on something else.
    """
    data = preparation.load(args.data, args.data_dir, args.train_size, "test")
    setting = Setting(
        args.data, args.train_size, args.model, args.epochs, args.quick, len(data.x_train)
    )
    record = _started(out, setting)

    def make_comparison(options: Options, folder: pathlib.Path) -> results.Results:
        job = compare.Job(options, folder, data_dir=args.data_dir, resume=True)
        found = compare.train_missing(job, console)
        results.save(folder, found, keep=_is_read)
        return found

    def make_lipschitz(options: dict[str, Any], folder: pathlib.Path) -> results.Results:
        return _lipschitz(options, folder, args.data_dir, console)

    for name in args.only:
        console.rule(name)
        experiments = Experiments(out, setting, args.seeds, make_comparison, make_lipschitz)
        judged = _judged(name, experiments)
        record["environment"] = results.environment()
        record["claims"][name] = judged | {"seeds": args.seeds, "command": command}
        _save(out, record)
    return _sorted(record)


def recompute(out: pathlib.Path, names: Sequence[str]) -> Record:
    """Judges claims again by the finished runs in a folder, without training.

    Args:
      out: a folder with claims.json.
      names: the claims to judge again.

    Returns:
      All claims of the folder, in the order of the registry.

    Raises:
      UsageError: if the folder lacks claims.json or a run that a claim needs.
    """
    record = _read(out)
    setting = Setting(**record["setting"])
    for name in names:
        if name not in record["claims"]:
            continue
        kept = record["claims"][name]
        experiments = Experiments(
            out, setting, kept["seeds"], recorded_comparison, recorded_lipschitz
        )
        judged = _judged(name, experiments)
        record["claims"][name] = judged | {"seeds": kept["seeds"], "command": kept["command"]}
    _save(out, record)
    return _sorted(record)


def _is_read(column: str) -> bool:
    """Whether a column of curves.npz is read by a claim; the others are not kept."""
    return column.startswith("curve.curvature.") or column == "epochs.seconds_per_step"


def _judged(name: str, experiments: Experiments) -> dict[str, Any]:
    """The claim with its verdict, its effects, and the folders that they were computed from."""
    claim = CLAIMS[name]
    effects = claim.effects(experiments)
    return {
        "statement": claim.statement,
        "source": claim.source,
        "verdict": verdict(effects),
        "effects": [effect._asdict() for effect in effects],
        "folders": experiments.folders,
    }


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


def _started(out: pathlib.Path, setting: Setting) -> Record:
    """The claims that were judged in this folder before."""
    if not (out / FILE).exists():
        return {"setting": setting._asdict(), "claims": {}}
    record = _read(out)
    if record["setting"] != setting._asdict():
        raise UsageError(
            f"{out / FILE} was made with {record['setting']}, and now the setting is "
            f"{setting._asdict()}. Name another folder with --out."
        )
    return record


def _read(out: pathlib.Path) -> Record:
    try:
        record: Record = json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read {out / FILE} ({error}). Name a folder of this command with --out."
        ) from error
    return record


def _save(out: pathlib.Path, record: Record) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        results.write_json(out / FILE, _sorted(record))
    except OSError as error:
        raise UsageError(
            f"Cannot write to {out} ({error}). Name a folder for the results with --out."
        ) from error


def _sorted(record: Record) -> Record:
    claims = record["claims"]
    return record | {"claims": {name: claims[name] for name in CLAIMS if name in claims}}


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
        help=f"claims, separated by commas (default: all of them: {', '.join(CLAIMS)})",
    )
    cli.add_output(parser, default="results/claims-DATA-MODEL")
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="judge the claims in --out again by the runs that are there, without training; takes "
        "no other options than --out and --only",
    )
    cli.add_quick(
        parser,
        f"{QUICK['seeds']} seeds, {QUICK['train_size']} examples, {QUICK['epochs']} epochs, and "
        "hyperparameters that are not tuned",
    )
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(CLAIMS)
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise UsageError(f"--only {','.join(unknown)} is unknown. Choose from {', '.join(CLAIMS)}.")
    args.only = names
    if args.recompute:
        _check_recompute(args, parser)
    cli.fill_in(args, QUICK if args.quick else {"seeds": SEEDS})
    if args.seeds < 2:
        raise UsageError(f"--seeds {args.seeds} is out of range: an interval needs at least 2.")
    return args


def _check_recompute(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.out is None:
        raise UsageError("--recompute needs --out FOLDER, a folder with claims.json.")
    for name, value in vars(args).items():
        if name not in ("recompute", "out", "only") and value != parser.get_default(name):
            raise UsageError(
                f"--recompute does not take {cli.flag(name)}: the setting is that of claims.json."
            )


if __name__ == "__main__":
    sys.exit(main())
