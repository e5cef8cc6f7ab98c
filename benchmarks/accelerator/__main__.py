"""Measures the step time of every method on this machine's GPU or TPU, in at most 8 minutes.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator --quick
    python -m benchmarks.accelerator --data-dir ~/data

The networks are ResNet-18 on 128 images of 32×32 pixels and a transformer with 0.1 billion
parameters on sequences of 1,024 tokens, both in bfloat16 with AdamW. Each method takes turns with
one gradient step written by hand and with `optax.contrib.sam`. When the time is used up, the
methods that remain are left out, and the table says so.

With `--data-dir`, a folder that contains CIFAR-10, ResNet-18 is first trained for two epochs with
plain gradients and with SAM.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.accelerator.run import AcceleratorOptions, run
from benchmarks.common import cli, results
from benchmarks.common.methods import METHODS

MINUTES, ROUNDS, QUICK_ROUNDS = 8.0, 10, 3
# Methods that are compared elsewhere, with a cost of one gradient, are left out.
FULL = ",".join(name for name, entry in METHODS.items() if entry.gradients > 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        args = _parse(argv)
        given = {name: getattr(args, name) for name in AcceleratorOptions._fields}
        options = AcceleratorOptions(**given | {"methods": args.methods.split(",")})
        folder = results.folder(args.out, "accelerator", resume=False)
        run(options, folder, command=cli.command_line("accelerator", argv))

    return cli.exit_code(command)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser("accelerator", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--methods",
        help=cli.METHODS_OF_STEPS,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"when to stop with further methods (default: {MINUTES:g})",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"how often each step is timed (default: {ROUNDS})"
    )
    parser.add_argument("--data-dir", help="folder with cifar10/train_*.npz and test.npz")
    cli.add_output(parser, default="a new one, such as results/accelerator-2")
    cli.add_quick(parser, "tiny networks, two methods, three rounds")
    args = parser.parse_args(argv)
    cli.fill_in(
        args,
        {
            "methods": "sam,gradient_regularization" if args.quick else FULL,
            "rounds": QUICK_ROUNDS if args.quick else ROUNDS,
        },
    )
    cli.check_at_least(vars(args), {"minutes": 0, "rounds": 1})
    return args


if __name__ == "__main__":
    cli.start(main)
