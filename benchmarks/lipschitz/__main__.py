"""Compares ways to control the Lipschitz constant of a network: what each costs and certifies.

    python -m benchmarks.lipschitz
    python -m benchmarks.lipschitz --quick
    python -m benchmarks.lipschitz --data fashion_mnist --train-size 6000 --model cnn --seeds 3
    python -m benchmarks.lipschitz --sweep
    python -m benchmarks.lipschitz --wgan

All methods train from the same parameters on the same batches. They take turns, epoch by epoch. For
each method the table shows the test accuracy, an interval for the Lipschitz constant (from the
steepest input that a search finds to a proven upper bound), the accuracy that is certified within
some radii, the accuracy under noise, and the time per epoch relative to plain training. With
`--wgan` the command trains Wasserstein GANs instead.

The default strengths were chosen by `--sweep` on the validation split of digits, over three seeds
for the MLP and one seed for the CNN. Among the strengths that cost at most one percentage point of
accuracy, the default is the one with the most certified accuracy. For the penalties on input
gradients it is the one with the highest accuracy under noise: these penalties act only on the data,
so that the bound for the whole network stays loose. Both models used these grids:

    weight decay λ                          0.0001 0.0003 0.001 0.003 0.01 0.03
    spectral norm penalty λ                 0.001 0.003 0.01 0.03 0.1 0.3
    orthogonality penalty λ                 0.0003 0.001 0.003 0.01 0.03 0.1
    normalization and both projections c    1 1.4 1.7 2 2.4 2.8 4, for every kernel
    input-gradient penalty of the loss λ    0.003 0.01 0.03 0.1 0.3
    input-gradient penalty of the margin λ  0.001 0.003 0.01 0.03 0.1 0.3
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import cli, results
from benchmarks.lipschitz.options import DEFAULT_METHODS, STEPS, LipschitzOptions, complete
from benchmarks.lipschitz.run import run
from benchmarks.lipschitz.wgan.run import run as run_wgan

QUICK = {
    "train_size": 150,
    "epochs": 3,
    "seeds": 2,
    "methods": "spectral_normalization,projection_upper_bound,input_gradient_penalty",
    "steps": 25,
}

# The options that do not apply to the other example.
OF_CLASSIFIER = (
    "data",
    "data_dir",
    "train_size",
    "evaluate_on",
    "model",
    "methods",
    "sweep",
    "learning_rate",
    "batch_size",
    "epochs",
    "radii",
    "noise",
)
OF_WGAN = ("steps",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        args = _parser().parse_args(argv)
        options = options_of(args)
        line = cli.command_line("lipschitz", argv)
        if options.wgan:
            run_wgan(
                options, results.folder(args.out, "lipschitz-wgan", resume=False), command=line
            )
            return
        name = f"lipschitz-{pathlib.Path(options.data).stem}-{options.model}"
        folder = results.folder(args.out, name, resume=False)
        run(options, folder, data_dir=args.data_dir, command=line)

    return cli.exit_code(command, "Interrupted. The results contain the seeds that were finished.")


def parse(argv: Sequence[str]) -> LipschitzOptions:
    """Returns the options of a command line, with the defaults."""
    return options_of(_parser().parse_args(argv))


def options_of(args: argparse.Namespace) -> LipschitzOptions:
    """Returns the options, with the defaults where the command line does not give a value."""
    given = vars(args).copy()
    _check_that_options_have_an_effect(given)
    if args.quick:
        given |= {name: value for name, value in QUICK.items() if given[name] is None}
    if given["radii"] is not None:
        given["radii"] = _radii(given["radii"])
    return complete(**{name: given[name] for name in LipschitzOptions._fields})


def _check_that_options_have_an_effect(args: dict[str, Any]) -> None:
    defaults = vars(_parser().parse_args([]))
    without_effect = OF_CLASSIFIER if args["wgan"] else OF_WGAN
    given = ", ".join(cli.flag(name) for name in without_effect if args[name] != defaults[name])
    if given and args["wgan"]:
        raise cli.UsageError(f"{given} applies to the classifier: leave out --wgan or {given}.")
    if given:
        raise cli.UsageError(f"{given} applies to the GANs: add --wgan or leave out {given}.")


def _radii(text: str) -> tuple[float, ...]:
    try:
        radii = tuple(float(word) for word in text.split(","))
    except ValueError:
        radii = ()
    if not radii or not all(0 < radius < float("inf") for radius in radii):
        raise cli.UsageError(
            f"--radii {text} must be positive numbers, such as --radii 0.1,0.2,0.4."
        )
    return tuple(sorted(set(radii)))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "lipschitz",
        description="Trains one network with several ways to control its Lipschitz constant, and "
        "shows what each of them costs and what it certifies.",
    )
    data = cli.add_data(parser)
    cli.add_evaluate_on(data, shown="test, with --sweep validation")
    parser.set_defaults(evaluate_on=None)  # filled in when --sweep is known
    training = parser.add_argument_group("training")
    cli.add_model(training, ("mlp", "cnn"), settings=False)
    training.add_argument(
        "--methods",
        help="methods separated by commas; a strength other than the default follows after a "
        "colon, as in spectral_penalty:0.03; plain training is always included (default: "
        f"{DEFAULT_METHODS})",
    )
    training.add_argument(
        "--sweep",
        action="store_true",
        help="train with every strength of each method's grid and print the best ones",
    )
    training.add_argument("--learning-rate", type=float, help="(default: 0.05, for digits 0.1)")
    training.add_argument(
        "--batch-size", type=int, help="examples per step (default: 100, for digits 50)"
    )
    training.add_argument("--epochs", type=int, help="(default: 25, for digits 40)")
    cli.add_seeds(training, "5, with --sweep 3")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--radii",
        help="radii of certified accuracy in the 2-norm, separated by commas; pixel values span an "
        "interval of length 1 (default: 0.1,0.2,0.4)",
    )
    measuring.add_argument(
        "--noise", type=float, help="standard deviation of the noise on each input (default: 0.3)"
    )
    wgan = parser.add_argument_group("Wasserstein GAN")
    wgan.add_argument(
        "--wgan",
        action="store_true",
        help="instead of the classifier, train Wasserstein GANs on points in the plane",
    )
    wgan.add_argument("--steps", type=int, help=f"steps of the generator (default: {STEPS})")
    cli.add_output(parser, default="a new one, such as results/lipschitz-digits-mlp-2")
    cli.add_quick(
        parser, "150 examples, three methods, 3 epochs and 2 seeds; with --wgan, 25 steps"
    )
    return parser


if __name__ == "__main__":
    cli.start(main)
