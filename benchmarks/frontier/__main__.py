"""Measures what a gradient buys: the test accuracy of each tuned method against compute.

    python -m benchmarks.frontier --jobs 2
    python -m benchmarks.frontier --label-noise 0.4 --methods plain,sam --budgets 0.125,0.25,0.5,1

`run.py` is the frontier; this file is its command line.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import cli, results
from benchmarks.common.models import build
from benchmarks.frontier.options import ALL, FLATNESS, Options, complete
from benchmarks.frontier.run import Job, run

QUICK = {
    "train_size": 300,
    "epochs": 10,
    "methods": "plain,sam",
    "budgets": "0.25,1",
    "trials": 2,
    "more": 0,
    "seeds": 2,
    "flatness": "no",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 after a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(lambda: _command(argv))


def _command(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.quick:
        cli.fill_in(args, QUICK)
    cli.check_at_least(vars(args), {"jobs": 1})
    options = complete(**{name: getattr(args, name) for name in Options._fields})
    noise = f"-noise-{options.label_noise:g}" if options.label_noise else ""
    name = f"frontier-{results.name_of(options.data, options.model)}{noise}"
    folder = results.folder(args.out, name, args.resume)
    job = Job(
        options,
        folder,
        data_dir=args.data_dir,
        resume=args.resume,
        jobs=args.jobs,
        quick=args.quick,
        command=cli.command_line("frontier", argv),
    )
    return cli.resumable(lambda: run(job), "frontier", argv, folder, "trials")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "frontier",
        description="Compares training methods at equal compute. At each budget of gradient "
        "evaluations, every method, the plain optimizer first, is tuned with the same number of "
        "trials on a validation set. The best trial is trained again from other seeds and "
        "evaluated on the test set. By default, it trains on 6,000 images of Fashion-MNIST and on "
        "10,000 of CIFAR-10.",
        epilog="The results are manifest.json (configuration and versions), runs.csv (one row per "
        "trial and test run), curves.npz (which test examples are correct), table.md and "
        "frontier.png. Every finished trial is written at once to journal.jsonl, so that --resume "
        "never repeats one, whatever stopped the command.",
    )
    data = cli.add_data(parser)
    data.add_argument(
        "--label-noise",
        "--noise",
        dest="label_noise",
        type=float,
        help="fraction of the training labels that are replaced by other classes (default: 0)",
    )
    training = parser.add_argument_group("training")
    cli.add_model(training, build.NAMES, filled_in=True)
    training.add_argument(
        "--dtype", choices=cli.DTYPES, help="dtype of the training (default: float32)"
    )
    training.add_argument(
        "--augment",
        action="store_true",
        help="augment the training images by random crops and horizontal flips (needs dm-pix)",
    )
    training.add_argument(
        "--optimizer", choices=cli.OPTIMIZERS, help="base optimizer (default: sgd; adamw for text)"
    )
    training.add_argument(
        "--batch-size", type=int, help="default: 100; 50 on digits and 32 on text"
    )
    training.add_argument(
        "--epochs",
        type=int,
        help="the budgets are in units of the gradients of so many epochs of the plain optimizer "
        "(default: 25; 40 on digits and 5 on text)",
    )
    training.add_argument(
        "--warmup",
        type=float,
        help="fraction of each training in which the learning rate rises linearly from 0 "
        "(default: 0; 0.1 on text)",
    )
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--methods",
        help=f"methods separated by commas, {ALL}, or ablation; "
        f"benchmarks/frontier/trials/contenders.py lists them (default: {ALL})",
    )
    comparison.add_argument(
        "--budgets",
        help="budgets separated by commas, in units of the reference number of gradients "
        "(default: 0.125,0.25,0.5,1,2,4)",
    )
    comparison.add_argument(
        "--trials",
        type=int,
        help="tuning trials of each method at each budget (default: 12)",
    )
    comparison.add_argument(
        "--more",
        type=int,
        help="further trials each time that the best one is in the outer tenth of a range, which "
        "then widens (default: 4)",
    )
    comparison.add_argument(
        "--seeds",
        type=int,
        help="test runs of each method at each budget, with the seeds 0, 1, … (default: 5)",
    )
    output = cli.add_output(
        parser,
        default="a new one, for example results/frontier-digits-mlp",
        resume="continue in --out, or else in the newest results folder of the same data and "
        "network, with the same options and the same training code",
    )
    output.add_argument(
        "--flatness",
        choices=FLATNESS,
        help="what is measured of the minimum of a test run: no: nothing; spectrum: the largest "
        "eigenvalue and the trace of the Hessian (default: spectrum)",
    )
    output.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of processes, each on its own core (default: 1, which uses all cores)",
    )
    cli.add_quick(
        parser,
        "300 training examples, the plain optimizer and SAM at two budgets of at most 10 epochs, "
        "2 trials and 2 seeds, without measures of flatness",
    )
    return parser


if __name__ == "__main__":
    cli.start(main)
