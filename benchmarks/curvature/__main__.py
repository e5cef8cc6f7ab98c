"""Measures how exact, how fast and how memory-efficient estimates of curvature are.

    python -m benchmarks.curvature --data fashion_mnist --peers
    python -m benchmarks.curvature --quick

The command trains an MLP for a few epochs. Then it estimates the top eigenvalues and the trace of
the Hessian of the loss over the whole test set by `flatreg.measures`, and with `--peers` also by
PyHessian and curvlinops on the same weights.

The error of the eigenvalues is the largest |λᵢ − λᵢ*|/λ₁*, where λ* comes from SciPy's ARPACK with
Hessian-vector products in float64. The error of the trace is its standard error; the trace from a
long run is shown for comparison. All estimates take turns, so that other load on the machine slows
down all of them alike.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks.common import cli, results
from benchmarks.curvature.run import CurvatureOptions, run

QUICK = {"train_size": 300, "examples": 200, "epochs": 5, "repeats": 2, "probes": 8}
FULL = {"train_size": None, "examples": None, "epochs": 2, "repeats": 5, "probes": 64}
LEAST = {"examples": 1, "epochs": 1, "repeats": 1, "probes": 2, "eigenvalues": 1, "batch_size": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        args = _parse(argv)
        options = CurvatureOptions(*(getattr(args, name) for name in CurvatureOptions._fields))
        name = f"curvature-{pathlib.Path(args.data).stem}"
        folder = results.folder(args.out, name, resume=False)
        line = cli.command_line("curvature", argv)
        run(options, folder, data_dir=args.data_dir, command=line)

    return cli.exit_code(command)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser("curvature", description=(__doc__ or "").split("\n")[0])
    cli.add_data(parser)
    for name, text in {
        "examples": "number of test examples (default: all)",
        "epochs": f"epochs of training (default: {FULL['epochs']})",
        "batch_size": "number of examples that are in memory at a time (default: 1000)",
        "eigenvalues": "number of eigenvalues (default: 5)",
        "probes": f"number of random vectors for the trace (default: {FULL['probes']})",
        "repeats": f"number of runs of each estimate (default: {FULL['repeats']})",
    }.items():
        parser.add_argument(cli.flag(name), type=int, help=text)
    parser.set_defaults(batch_size=1000, eigenvalues=5)
    parser.add_argument(
        "--peers", action="store_true", help="also measure PyHessian and curvlinops in PyTorch"
    )
    cli.add_output(parser, default="a new one, such as results/curvature-digits-2")
    cli.add_quick(parser, "300 training and 200 test examples, 8 probes, 2 runs of each estimate")
    args = parser.parse_args(argv)
    cli.fill_in(args, QUICK if args.quick else FULL)
    cli.check_at_least(vars(args), LEAST)
    return args


if __name__ == "__main__":
    cli.start(main)
