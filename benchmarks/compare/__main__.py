"""Compares training methods with the plain optimizer: accuracy, flatness and cost.

    python -m benchmarks.compare
    python -m benchmarks.compare --data fashion_mnist --train-size 6000 --methods sgd,sam:rho=0.2

`run.py` is the comparison; this file is its command line.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import cli, results
from benchmarks.common.models import build
from benchmarks.common.options import (
    BUDGETS,
    FLATNESS,
    METHODS,
    Options,
    complete,
)
from benchmarks.compare.run import Job, run

# Plain gradients, a method with two gradients per step, and one with a Hessian-vector product.
QUICK = {"train_size": 300, "epochs": 3, "seeds": 2, "flatness": "lambda_max"}
QUICK_METHODS = ("sam:rho=0.3", "gradient_norm_penalty:penalty=0.2")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 after a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(lambda: _command(argv))


def _command(argv: Sequence[str]) -> int:
    args = parse(argv)
    options = complete(**{name: getattr(args, name) for name in Options._fields})
    folder = results.folder(args.out, results.name_of(options.data, options.model), args.resume)
    command = cli.command_line("compare", argv)
    job = Job(options, folder, args.data_dir, args.resume, args.save_models, command)
    return cli.resumable(lambda: run(job), "compare", argv, folder, "runs")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; None stands for the default of an option."""
    args = _parser().parse_args(argv)
    if args.quick:
        plain = args.optimizer or cli.base_optimizer(args.data)
        cli.fill_in(args, QUICK | {"methods": ",".join([plain, *QUICK_METHODS])})
    return args


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "compare",
        description="Trains a network with the plain optimizer and with each method, from the same "
        "initial parameters and on the same batches, and reports accuracy, flatness and cost.",
        epilog="The results are manifest.json (configuration and versions), runs.csv (one row per "
        "run), curves.npz, table.md and figures. If the command is interrupted, it keeps every "
        "finished run, and --resume continues from there.",
    )
    data = cli.add_data(parser)
    data.add_argument(
        "--label-noise",
        type=float,
        help="fraction of the training labels that are replaced by other classes (default: 0)",
    )
    cli.add_evaluate_on(data)
    training = parser.add_argument_group("training")
    cli.add_model(training, build.NAMES, filled_in=True)
    training.add_argument(
        "--dtype",
        choices=cli.DTYPES,
        help="dtype of the network's computations during training; parameters, loss and all "
        "measurements are float32 (default: float32)",
    )
    training.add_argument(
        "--augment",
        action="store_true",
        help="augment the training images by random crops and horizontal flips (needs dm-pix); "
        "meant for photographs, not for digits",
    )
    training.add_argument(
        "--methods",
        help="methods separated by commas, with hyperparameters after colons. :every=5 applies a "
        "method on every fifth step only, :after=200 from step 200 on; + adds methods up; "
        ":ascent_fraction=0.1 (sam and asam, at the end) computes the ascent direction from a "
        "tenth of the batch. The name of the optimizer stands for plain gradients "
        f"(default: sgd,{','.join(METHODS)})",
    )
    training.add_argument(
        "--optimizer", choices=cli.OPTIMIZERS, help="base optimizer (default: sgd; adamw for text)"
    )
    training.add_argument(
        "--learning-rate",
        type=float,
        help="peak of the cosine schedule (default: for sgd 0.05, 0.1 on digits and 0.03 for a "
        "vit; for adamw 0.001, and 0.003 on text)",
    )
    training.add_argument(
        "--warmup-epochs",
        type=float,
        help="epochs in which the learning rate rises linearly from 0 (default: 0, on text 1)",
    )
    training.add_argument("--weight-decay", type=float, help="default: 0 for sgd, 0.0001 for adamw")
    training.add_argument("--batch-size", type=int, help="default: 100, on digits 50, on text 32")
    training.add_argument("--epochs", type=int, help="default: 25, on digits 40, on text 5")
    training.add_argument(
        "--budget",
        choices=BUDGETS,
        help="what is equal for all methods: the number of training steps, or the number of "
        "gradient evaluations, which gives more expensive methods fewer steps and a shorter "
        "schedule (default: steps)",
    )
    cli.add_seeds(training, "5")
    training.add_argument(
        "--first-seed",
        type=int,
        help="the first seed, for runs with other seeds than earlier ones (default: 0)",
    )
    output = cli.add_output(
        parser,
        default="a new one, for example results/digits-mlp-2",
        resume="continue in --out, or else in the newest results folder of the same data and "
        "network; --methods and --seeds may name more than before",
    )
    output.add_argument(
        "--flatness",
        choices=FLATNESS,
        help="what is measured of the minimum: no: nothing; lambda_max: the largest Hessian "
        "eigenvalue; end: also trace, R⁰, R¹ and PACGen; along: also the largest eigenvalue and "
        "the trace during training (default: end)",
    )
    output.add_argument(
        "--save-models",
        action="store_true",
        help="keep each trained network, for python -m benchmarks.measure",
    )
    cli.add_quick(
        parser,
        "300 training examples, 3 epochs, 2 seeds, 3 methods, and of the "
        "measures of flatness only the largest eigenvalue",
    )
    return parser


if __name__ == "__main__":
    cli.start(main)
