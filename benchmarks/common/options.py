"""The command line of `python -m benchmarks.compare`, its defaults and its checks."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.common import augment as _augment
from benchmarks.common.cli import Parser, UsageError
from benchmarks.common.models import build as _models

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
FLATNESS = ("no", "lambda_max", "end", "along")
# Their hyperparameters were chosen on the validation split of digits.
METHODS = (
    "sam:rho=0.3",
    "asam:rho=2",
    "penalized_gradient:r=0.3:alpha=0.8",
    "gradient_norm_penalty:penalty=0.2",
    "gradient_regularization:mu=0.1",
    "gam:rho=0.2:alpha=1",
    "gam_accelerated",
)


class Options(NamedTuple):
    """Everything that decides a number, in the order in which `results.json` lists it."""

    data: str
    evaluate_on: str
    train_size: int | None
    label_noise: float
    model: str
    dtype: str
    augment: bool
    methods: str
    optimizer: str
    learning_rate: float
    warmup_epochs: float
    weight_decay: float
    batch_size: int
    epochs: int
    budget: str
    flatness: str
    seeds: int


class Places(NamedTuple):
    """Where data are read and results are written, which decides no number."""

    data_dir: str | None
    out: str | None
    resume: bool
    save_models: bool


def parse(argv: Sequence[str] | None) -> tuple[Options, Places]:
    """Reads the command line, fills in what depends on the data, and checks the ranges."""
    args = vars(_parser().parse_args(argv))
    digits = args["data"] == "digits"
    rate = 0.03 if args["model"].startswith("vit") else 0.1 if digits else 0.05  # of SGD
    suited = {
        "epochs": 40 if digits else 25,
        "batch_size": 50 if digits else 100,
        "learning_rate": rate if args["optimizer"] == "sgd" else 1e-3,
        "weight_decay": 0.0 if args["optimizer"] == "sgd" else 1e-4,
        "methods": ",".join((args["optimizer"], *METHODS)),
    }
    args.update({name: value for name, value in suited.items() if args[name] is None})
    options = Options(**{name: args[name] for name in Options._fields})
    _check(options)
    return options, Places(**{name: args[name] for name in Places._fields})


def _check(options: Options) -> None:
    if options.augment:
        _augment.check_installed()
    allowed = {
        "epochs": (options.epochs >= 1, "at least 1"),
        "seeds": (options.seeds >= 1, "at least 1"),
        "batch_size": (options.batch_size >= 1, "at least 1"),
        "train_size": (options.train_size is None or options.train_size >= 1, "at least 1"),
        "learning_rate": (0 < options.learning_rate < float("inf"), "a positive number"),
        "warmup_epochs": (
            0 <= options.warmup_epochs < options.epochs,
            f"0 or more, and less than the {options.epochs} epochs",
        ),
        "weight_decay": (0 <= options.weight_decay < float("inf"), "0 or a positive number"),
        "label_noise": (0 <= options.label_noise < 1, "in [0, 1), such as 0.4 for 40%"),
    }
    for name, (passed, range_) in allowed.items():
        if not passed:
            raise UsageError(
                f"{flag(name)} {getattr(options, name)} is out of range: it must be {range_}."
            )


def flag(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.compare",
        description="Trains the plain optimizer and each method from the same seeds and batches, "
        "and says what each method bought.",
        epilog="Results go to results.json, table.md and two plots. Interrupted, the command "
        "keeps every finished run, and --resume goes on from there.",
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        help="digits (bundled with scikit-learn, the default), mnist, fashion_mnist, cifar10, or "
        "PATH.npz with the arrays x_train, y_train, x_test, y_test",
    )
    data.add_argument(
        "--data-dir",
        help="folder of mnist.npz, fashion_mnist.npz or cifar10/train_*.npz and test.npz; without "
        "it scikit-learn fetches them from OpenML",
    )
    data.add_argument("--train-size", type=int, help="examples to train on (default: all)")
    data.add_argument(
        "--label-noise",
        type=float,
        default=0.0,
        help="fraction of the training labels replaced by another class (default: 0)",
    )
    data.add_argument(
        "--evaluate-on",
        choices=("test", "validation"),
        default="test",
        help="validation holds out a fifth of the training set and leaves the test set alone, "
        "to choose hyperparameters by (default: test)",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--model",
        default="mlp",
        help=f"{', '.join(_models.NAMES)}, with settings after colons, as in "
        "vit:width=48:depth=2:heads=2 or mlp:dropout=0.5 (default: mlp)",
    )
    training.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="in which the model computes in training; its parameters, the loss and all "
        "measurements are float32 (default: float32)",
    )
    training.add_argument(
        "--augment",
        action="store_true",
        help="crop each training image at random out of a padded one, and mirror half of them, by "
        "dm-pix; for photographs rather than for digits",
    )
    training.add_argument(
        "--methods",
        help="methods separated by commas, hyperparameters after colons, :every=5 for every fifth "
        "step only, :after=200 from step 200 on, :ascent_fraction=0.1 behind sam or asam alone for "
        "an ascent along a tenth of the batch, + for a sum; the plain gradient goes by the "
        f"optimizer's name (default: sgd,{','.join(METHODS)})",
    )
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    training.add_argument(
        "--learning-rate",
        type=float,
        help="default: 0.05, on digits 0.1, of a vit 0.03, with adamw 0.001",
    )
    training.add_argument(
        "--warmup-epochs",
        type=float,
        default=0.0,
        help="in which the learning rate rises in a line from 0, before the cosine (default: 0)",
    )
    training.add_argument("--weight-decay", type=float, help="default: 0, with adamw 0.0001")
    training.add_argument("--batch-size", type=int, help="default: 100, on digits 50")
    training.add_argument("--epochs", type=int, help="default: 25, on digits 40")
    training.add_argument(
        "--budget",
        choices=("steps", "gradients"),
        default="steps",
        help="what is equal for all methods: training steps, or gradient evaluations, which gives "
        "the dearer methods fewer steps under a shorter schedule (default: steps)",
    )
    training.add_argument("--seeds", type=int, default=5, help="default: 5")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--flatness",
        choices=FLATNESS,
        default="end",
        help="what is measured of the minimum: nothing, λ_max alone, in the end curvature, R⁰, R¹ "
        "and PACGen, or these and λ_max and trace along training too (default: end)",
    )
    output.add_argument(
        "--out", help="folder for the results (default: a new one, such as results/digits-mlp-2)"
    )
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on in --out, or else in the newest such folder; methods and seeds may be added",
    )
    output.add_argument(
        "--save-models",
        action="store_true",
        help="keep every trained network beside the results, for python -m benchmarks.measure",
    )
    return parser
