"""Measures how flat the minimum is that one run of a comparison has found.

    python -m benchmarks.compare --save-models --out results/digits
    python -m benchmarks.measure results/digits --method sam:rho=0.3
    python -m benchmarks.measure results/digits --report --with sgd
    python -m benchmarks.measure results/digits --quick

All measures are for the training loss with the labels that the run saw, in eval mode and in full
float32 precision, and each number comes with its error. The command writes measured.json and two
figures next to the saved network: slices of the loss, and the spectral density of its Hessian.
With --report, it writes all of this to one page, report.html, with PACGen's metric and the
stability of the optimizer. With --with, it measures the loss between two networks.
"""

import argparse
import pathlib
from collections.abc import Sequence

from benchmarks.common import cli
from benchmarks.measure.measuring import Settings
from benchmarks.measure.run import MeasureOptions, run

# Counts by their option: the default, the value with --quick, the least value, and the help.
COUNTS = {
    "examples": (2048, 128, 1, "number of training examples"),
    "batch_size": (512, 128, 1, "number of examples that are in memory at a time"),
    "eigenvalues": (5, 5, 1, "number of eigenvalues"),
    "steps": (20, 20, 1, "steps of the Lanczos iteration"),
    "probes": (64, 4, 2, "number of random vectors for the trace"),
    "ascent_steps": (100, 3, 1, "steps of the search for R⁰ and R¹"),
    "curve_steps": (500, 20, 0, "training steps of the curve to the other network"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""

    def command() -> None:
        args = _parse(argv)
        options = MeasureOptions(
            method=args.method,
            seed=args.seed,
            examples=args.examples,
            batch_size=args.batch_size,
            settings=Settings(*(getattr(args, name) for name in Settings._fields)),
            other=args.other,
            report=args.report,
        )
        run(options, pathlib.Path(args.results), data_dir=args.data_dir)

    return cli.exit_code(command)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser("measure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "results", help="the folder that python -m benchmarks.compare --save-models has written"
    )
    parser.add_argument(
        "--method", help="a method as the comparison lists it (default: its first one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the run (default: 0)")
    parser.add_argument(
        "--with",
        dest="other",
        metavar="METHOD[/SEED]",
        help="another network of the comparison, for the loss between the two (default seed: "
        "that of --seed)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html, one page with all numbers and figures that needs no other "
        "file",
    )
    parser.add_argument("--data-dir", help=cli.DATA_DIR_HELP)
    for name, (default, _, _, text) in COUNTS.items():
        parser.add_argument(cli.flag(name), type=int, help=f"{text} (default: {default})")
    parser.add_argument(
        "--rho", type=float, default=0.05, help="radius of the ball for R⁰ and R¹ (default: 0.05)"
    )
    cli.add_quick(parser, "128 examples, 4 probes, 3 ascent steps and 20 steps of the curve")
    args = parser.parse_args(argv)
    cli.fill_in(args, {name: count[1 if args.quick else 0] for name, count in COUNTS.items()})
    cli.check_at_least(vars(args), {name: least for name, (_, _, least, _) in COUNTS.items()})
    if args.steps < args.eigenvalues:
        raise cli.UsageError(
            f"--steps {args.steps} must be at least --eigenvalues {args.eigenvalues}."
        )
    if not 0 < args.rho < float("inf"):
        raise cli.UsageError(f"--rho {args.rho} must be a positive number.")
    return args


if __name__ == "__main__":
    cli.start(main)
