"""What the papers claim, tried on real data: each claim with its effect, interval and verdict.

    python -m benchmarks.claims --quick
    python -m benchmarks.claims --data fashion_mnist --train-size 6000 --data-dir DIR
    python -m benchmarks.claims --only sam_beats_sgd,flatter_by_gam

A claim is a statement about runs of `python -m benchmarks.compare`, which this command starts one
after another in folders of their own; so every number goes back to a results.json with the command
that made it, an interrupted job goes on, and claims share runs. Hyperparameters are chosen on the
validation split, from grids of the same size for every method, before the test set is looked at.
An effect is paired over the seeds, with its 95% t-interval: a claim is *reproduced* if all of its
intervals are above zero, *not reproduced* if one is below, else *inconclusive*. Writes claims.json.

`_claims.py` lists the claims, `_experiments.py` makes their runs.
"""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks import _results
from benchmarks._claims import CLAIMS, Claim, Effect, verdict
from benchmarks._errors import Parser, UsageError, exit_code
from benchmarks._experiments import Bench, Setting

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
    out = pathlib.Path(args.out or f"results/claims-{pathlib.Path(args.data).stem}")
    setting = Setting(
        args.data, args.data_dir, 300 if args.quick else args.train_size, args.seeds, args.quick
    )
    bench = Bench(out, setting)
    command = shlex.join(["python", "-m", "benchmarks.claims", *argv])
    judged: dict[str, Any] = {}
    for name in chosen:
        console.rule(name)
        effects = CLAIMS[name].effects(bench)
        judged[name] = _as_dict(CLAIMS[name], effects)
        _results.save(
            out,
            {
                "command": command,
                "setting": setting.recorded(),
                "environment": _results.environment(),
                "runs": sorted(bench.commands.values()),
                "claims": judged,
            },
            FILE,
        )
    (out / "table.md").write_text(_markdown(judged, setting, command), encoding="utf-8")
    console.rule("effects above zero are as claimed: mean [95% interval]")
    for claim in judged.values():
        _show(console, claim)
    console.print(f"Written to {out}: {FILE}, and a folder for each comparison")


def _as_dict(claim: Claim, effects: list[Effect]) -> dict[str, Any]:
    return {
        "statement": claim.statement,
        "source": claim.source,
        "verdict": verdict(effects),
        "effects": [effect._asdict() for effect in effects],
    }


def _show(console: Console, claim: dict[str, Any]) -> None:
    color = {"reproduced": "green", "not reproduced": "red"}.get(claim["verdict"], "yellow")
    console.print(
        f"[{color}]{claim['verdict']}[/]: {claim['statement']} ({claim['source']})", highlight=False
    )
    for effect in claim["effects"]:
        size = f"{effect['mean']:.3g} [{effect['low']:.3g}, {effect['high']:.3g}]"
        console.print(f"    {effect['what']}: {size}, {effect['seeds']} seeds", highlight=False)


def _markdown(judged: dict[str, Any], setting: Setting, command: str) -> str:
    counts = [claim["verdict"] for claim in judged.values()]
    summary = ", ".join(f"{counts.count(v)} {v}" for v in dict.fromkeys(counts))
    lines = [
        f"# Claims on {setting.data}",
        "",
        f"    {command}",
        "",
        f"{summary}. An effect above zero is as claimed; mean and 95% t-interval over the seeds, "
        "which are paired. Accuracies are those of the test set, hyperparameters were chosen on "
        "the validation split.",
        "",
        "| claim | effect | mean | 95% interval | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for claim in judged.values():
        first = f"{claim['statement']} ({claim['source']})", f"**{claim['verdict']}**"
        for effect in claim["effects"]:
            interval = f"{effect['low']:.3g} to {effect['high']:.3g}"
            what = effect["what"].replace("|", "\\|")
            lines.append(
                f"| {first[0]} | {what} | {effect['mean']:.3g} | {interval} | {first[1]} |"
            )
            first = "", ""
    return "\n".join([*lines, ""])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.claims", allow_abbrev=False)
    parser.add_argument("--data", default="digits", help="as for benchmarks.compare (digits)")
    parser.add_argument("--data-dir", help="as for benchmarks.compare")
    parser.add_argument("--train-size", type=int, help="examples to train on (all)")
    parser.add_argument("--seeds", type=int, help="of each run (5, with --quick 2)")
    parser.add_argument("--only", help=f"some of {', '.join(CLAIMS)}, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="small, to see that it works; proves nothing"
    )
    parser.add_argument("--out", help="folder of the results (results/claims-DATA)")
    args = parser.parse_args(argv)
    if args.seeds is None:
        args.seeds = 2 if args.quick else 5
    if args.seeds < 2:
        raise UsageError(f"--seeds {args.seeds} is out of range: an interval needs at least 2.")
    return args


if __name__ == "__main__":
    sys.exit(main())
