"""Compares a sharp and a flat minimum of PACGen's toy network, which has two weights.

    python -m benchmarks.toy
    python -m benchmarks.toy --quick

The command finds all minima of the training loss in a square of the weight plane. It compares the
global minimum, which is sharp, with the flattest of the other minima, and prints for both the loss,
the largest eigenvalue of the Hessian, PACGen's metric, the PAC-Bayes bound and the loss on fresh
samples. It draws one figure: the loss, the metric and the bound over the plane, and the labels that
the network predicts at the two minima. `benchmarks/toy/problem.py` describes the problem and names
the choices that are our own because the paper gives no numbers.
"""

import argparse
import pathlib
from collections.abc import Sequence

from benchmarks.common.cli import Parser, add_quick, check_at_least, exit_code, start
from benchmarks.toy.run import run

POINTS, QUICK_POINTS = 61, 9


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""

    def command() -> None:
        args = _parse(argv)
        run(pathlib.Path(args.out), args.points)

    return exit_code(command)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("toy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="results/toy/toy.png",
        help="file for the figure (default: results/toy/toy.png)",
    )
    parser.add_argument(
        "--points",
        type=int,
        help=f"number of grid points along each axis of the surfaces (default: {POINTS})",
    )
    add_quick(parser, f"surfaces with {QUICK_POINTS} points along each axis")
    args = parser.parse_args(argv)
    if args.points is None:
        args.points = QUICK_POINTS if args.quick else POINTS
    check_at_least(vars(args), {"points": 2})
    return args


if __name__ == "__main__":
    start(main)
