"""What the papers claim, tried on real data: each claim with its effect, interval and verdict.

    python -m benchmarks.claims --quick
    python -m benchmarks.claims --data fashion_mnist --train-size 6000 --data-dir DIR
    python -m benchmarks.claims --model vit:width=48:depth=2:heads=2 --only zero_warmup,cheap_ascent

A claim is a statement about runs of `python -m benchmarks.compare`, which this command starts one
after another in folders of their own; so every number goes back to a results.json with the command
that made it, an interrupted job goes on, and claims share runs. Hyperparameters are chosen on the
validation split, from grids of the same size for every method, before the test set is looked at.
An effect is paired over the seeds, with its 95% t-interval: a claim is *reproduced* if all of its
intervals are above zero, *not reproduced* if one is below, else *inconclusive*. Writes claims.json,
in which further claims join those that are there.

`_claims.py` lists the claims, `_claims_accuracy.py` and `_claims_flatness.py` say what each
predicts, `_effects.py` judges, `_experiments.py` makes the runs.
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.claims import table as _claims_table
from benchmarks.claims.effects import verdict
from benchmarks.claims.experiments import Bench, Setting
from benchmarks.claims.registry import CLAIMS
from benchmarks.common import results as _results
from benchmarks.common.cli import Parser, UsageError, exit_code

FILE = "claims.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    kept = "Interrupted. Finished runs are kept: give the same command again."
    return exit_code(lambda: run(_parse(argv), argv), kept)


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Makes the runs that the chosen claims need, judges them, prints and writes."""
    console = Console(soft_wrap=True)
    chosen = args.only.split(",") if args.only else list(CLAIMS)
    unknown = [name for name in chosen if name not in CLAIMS]
    if unknown:
        raise UsageError(f"--only names {', '.join(unknown)}: there are {', '.join(CLAIMS)}.")
    name = f"{pathlib.Path(args.data).stem}-{args.model.replace(':', '-')}"
    out = pathlib.Path(args.out or f"results/claims-{name}")
    setting = Setting(**{name: getattr(args, name) for name in Setting._fields})
    bench = Bench(out, setting)
    record = _earlier(out, setting)
    for name in chosen:
        console.rule(name)
        effects = CLAIMS[name].effects(bench)
        record["environment"] = _results.environment()
        record["runs"] = sorted({*record["runs"], *bench.commands.values()})
        record["claims"][name] = {
            "statement": CLAIMS[name].statement,
            "source": CLAIMS[name].source,
            "command": shlex.join(["python", "-m", "benchmarks.claims", *argv]),
            "verdict": verdict(effects),
            "effects": [effect._asdict() for effect in effects],
        }
        _results.save(out, record, FILE)
    # in the order of the registry, whatever was tried first
    claims = {name: record["claims"][name] for name in CLAIMS if name in record["claims"]}
    table = _claims_table.markdown(claims, setting)
    (out / "table.md").write_text(table, encoding="utf-8")
    _claims_table.show(claims, console)
    console.print(f"Written to {out}: {FILE}, table.md, and a folder for each comparison")


def _earlier(out: pathlib.Path, setting: Setting) -> dict[str, Any]:
    """What was judged in this folder before, which claims may be added to."""
    now = setting.recorded()
    now.pop("seeds")  # of which each effect has its own
    if not (out / FILE).exists():
        return {"setting": now, "runs": [], "claims": {}}
    kept: dict[str, Any] = json.loads((out / FILE).read_text())
    if kept["setting"] != now:
        raise UsageError(
            f"{out / FILE} was made with {kept['setting']}, and now it is {now}. Name another "
            "folder with --out."
        )
    return kept


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.claims",
        description=(__doc__ or "").split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--data", default="digits", help="as for benchmarks.compare (digits)")
    parser.add_argument("--data-dir", help="as for benchmarks.compare")
    parser.add_argument("--train-size", type=int, help="examples to train on (all)")
    parser.add_argument("--model", default="mlp", help="as for benchmarks.compare (mlp)")
    parser.add_argument("--epochs", type=int, help="as for benchmarks.compare (its default)")
    parser.add_argument("--seeds", type=int, help="of each run (5, with --quick 2)")
    parser.add_argument("--only", help=f"some of {', '.join(CLAIMS)}, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="small, to see that it works; proves nothing"
    )
    parser.add_argument("--out", help="folder of the results (results/claims-DATA-MODEL)")
    args = parser.parse_args(argv)
    for name, quick, full in (("seeds", 2, 5), ("train_size", 300, None), ("epochs", 3, None)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    if args.seeds < 2:
        raise UsageError(f"--seeds {args.seeds} is out of range: an interval needs at least 2.")
    return args


if __name__ == "__main__":
    sys.exit(main())
