"""The command line of `python -m benchmarks.lipschitz`, its defaults and its checks."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.common.cli import Parser, UsageError
from benchmarks.common.options import flag

METHODS = (
    "weight_decay,spectral_penalty,orthogonality_penalty,spectral_normalization,projection,"
    "projection_upper_bound,input_gradient_penalty,margin_gradient_penalty"
)

# What decides nothing in the other example.
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


class Options(NamedTuple):
    """Everything that decides a number, in the order in which `results.json` lists it."""

    data: str
    evaluate_on: str
    train_size: int | None
    model: str
    methods: str
    sweep: bool
    learning_rate: float
    batch_size: int
    epochs: int
    seeds: int
    radii: tuple[float, ...]
    noise: float
    wgan: bool
    steps: int


class Places(NamedTuple):
    """Where data are read and results are written, which decides no number."""

    data_dir: str | None
    out: str | None


def parse(argv: Sequence[str] | None) -> tuple[Options, Places]:
    """Reads the command line, fills in what depends on the data, and checks the ranges."""
    args = vars(_parser().parse_args(argv))
    _check_idle(args)
    digits = args["data"] == "digits"
    suited = {
        "epochs": 40 if digits else 25,
        "batch_size": 50 if digits else 100,
        "learning_rate": 0.1 if digits else 0.05,
        "seeds": 3 if args["sweep"] else 5,
        "evaluate_on": "validation" if args["sweep"] else "test",
    }
    args.update({name: value for name, value in suited.items() if args[name] is None})
    args["radii"] = _radii(args["radii"])
    options = Options(**{name: args[name] for name in Options._fields})
    _check(options)
    return options, Places(**{name: args[name] for name in Places._fields})


def _check_idle(args: dict[str, Any]) -> None:
    """No option was given that would decide nothing."""
    default = vars(_parser().parse_args([]))
    idle = OF_CLASSIFIER if args["wgan"] else OF_WGAN
    given = [flag(name) for name in idle if args[name] != default[name]]
    if given:
        other = "the classifier: leave out --wgan or" if args["wgan"] else "the GAN: add --wgan or"
        raise UsageError(f"{', '.join(given)} is for {other} leave out {', '.join(given)}.")


def _radii(text: str) -> tuple[float, ...]:
    try:
        radii = tuple(float(word) for word in text.split(","))
    except ValueError:
        radii = ()
    if not radii or not all(0 < radius < float("inf") for radius in radii):
        raise UsageError(f"--radii {text} must be positive numbers, such as --radii 0.1,0.2,0.4.")
    return tuple(sorted(set(radii)))


def _check(options: Options) -> None:
    allowed = {
        "epochs": (options.epochs >= 1, "at least 1"),
        "seeds": (options.seeds >= 1, "at least 1"),
        "steps": (options.steps >= 1, "at least 1"),
        "batch_size": (options.batch_size >= 1, "at least 1"),
        "train_size": (options.train_size is None or options.train_size >= 1, "at least 1"),
        "learning_rate": (0 < options.learning_rate < float("inf"), "a positive number"),
        "noise": (0 <= options.noise < float("inf"), "0 or a positive number"),
    }
    for name, (passed, range_) in allowed.items():
        if not passed:
            raise UsageError(
                f"{flag(name)} {getattr(options, name)} is out of range: it must be {range_}."
            )
    if options.sweep and options.evaluate_on == "test":
        raise UsageError(
            "--sweep chooses strengths, which the test set must not decide: leave out "
            "--evaluate-on test, or leave out --sweep."
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.lipschitz",
        description="Trains one network with each way to control its Lipschitz constant, and says "
        "what each costs and what can be certified of it.",
        epilog="Results go to results.json, table.md and a plot.",
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="digits", help="as for benchmarks.compare (digits)")
    data.add_argument("--data-dir", help="as for benchmarks.compare")
    data.add_argument("--train-size", type=int, help="examples to train on (all)")
    data.add_argument(
        "--evaluate-on",
        choices=("test", "validation"),
        help="validation holds out a fifth of the training set (test; validation with --sweep)",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    training.add_argument(
        "--methods",
        default=METHODS,
        help="names separated by commas, each with its strength after a colon where another than "
        f"the default is wanted, as in spectral_penalty:0.03; plain is always there ({METHODS})",
    )
    training.add_argument(
        "--sweep", action="store_true", help="every strength of each method's grid, and the choice"
    )
    training.add_argument("--learning-rate", type=float, help="0.05, on digits 0.1")
    training.add_argument("--batch-size", type=int, help="100, on digits 50")
    training.add_argument("--epochs", type=int, help="25, on digits 40")
    training.add_argument("--seeds", type=int, help="5, with --sweep 3")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--radii",
        default="0.1,0.2,0.4",
        help="of certified accuracy, in the 2-norm; images range over 1 (0.1,0.2,0.4)",
    )
    measuring.add_argument(
        "--noise", type=float, default=0.3, help="standard deviation of each input's noise (0.3)"
    )
    wgan = parser.add_argument_group("generative example")
    wgan.add_argument(
        "--wgan", action="store_true", help="a Wasserstein GAN in the plane instead of a classifier"
    )
    wgan.add_argument("--steps", type=int, default=1000, help="of its generator (1000)")
    parser.add_argument("--out", help="folder for the results (default: a new one)")
    return parser
