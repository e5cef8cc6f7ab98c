"""The options of a comparison: what decides its numbers, the defaults and the valid ranges."""

from typing import Any, NamedTuple

from benchmarks.common.cli import UsageError, check_at_least, check_training, flag, suited

BUDGETS = ("steps", "gradients")
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
    """Everything that decides a number, as the options of `python -m benchmarks.compare`.

    `complete` makes one from the few options that a caller wants to set.
    """

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
    first_seed: int


def complete(**given: Any) -> Options:
    """Returns all options of a comparison: the given ones and suitable defaults for the others.

    Args:
      **given: fields of `Options`. None stands for the default, which for some options depends on
        the data, the network and the optimizer.

    Raises:
      UsageError: if an option is out of its range.
    """
    options = suited(given)
    is_text, digits = options["data"] == "text", options["data"] == "digits"
    optimizer, is_vit = options["optimizer"], options["model"].startswith("vit")
    sgd_rate = 0.03 if is_vit else 0.1 if digits else 0.05
    own = {
        "evaluate_on": "test",
        "train_size": None,
        "learning_rate": sgd_rate if optimizer == "sgd" else 3e-3 if is_text else 1e-3,
        "weight_decay": 0.0 if optimizer == "sgd" else 1e-4,
        "warmup_epochs": 1.0 if is_text and options["epochs"] > 1 else 0.0,
        "methods": ",".join((optimizer, *METHODS)),
        "budget": "steps",
        "flatness": "end",
        "first_seed": 0,
    }
    completed = Options(**own | options)
    _check(completed)
    return completed


def _check(options: Options) -> None:
    check_training(
        options._asdict(),
        {"budget": BUDGETS, "flatness": FLATNESS, "evaluate_on": ("test", "validation")},
    )
    check_at_least(
        options._asdict(),
        {"epochs": 1, "seeds": 1, "first_seed": 0, "batch_size": 1, "train_size": 1},
    )
    allowed = {
        "learning_rate": (0 < options.learning_rate < float("inf"), "a positive number"),
        "warmup_epochs": (
            0 <= options.warmup_epochs < options.epochs,
            f"at least 0 and less than the {options.epochs} epochs",
        ),
        "weight_decay": (0 <= options.weight_decay < float("inf"), "0 or a positive number"),
        "label_noise": (0 <= options.label_noise < 1, "in [0, 1), for example 0.4 for 40%"),
    }
    for name, (passed, range_) in allowed.items():
        if not passed:
            raise UsageError(
                f"{flag(name)} {getattr(options, name)} is out of range: it must be {range_}."
            )
