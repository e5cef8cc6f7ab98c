"""The options of a frontier: what decides its numbers, the defaults and the valid ranges."""

import math
from typing import Any, NamedTuple

from benchmarks.common.cli import UsageError, check_at_least, check_training, suited
from benchmarks.frontier.tuning import Range

ALL = "all"  # the value of --methods for all methods
FLATNESS = ("no", "spectrum")
TUNING_SEED = 10**6  # no test run has this seed, because the test seeds are 0, 1, …
BUDGETS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)


class Options(NamedTuple):
    """Everything that decides a number, as the options of `python -m benchmarks.frontier`.

    Attributes:
      data: the data set.
      train_size: the number of training examples, for tuning and for testing. None stands for the
        whole training set, of which tuning holds out a fifth.
      label_noise: the fraction of wrong training labels.
      model: the network.
      dtype: the dtype of the network's computations during training.
      augment: whether to augment the training images.
      optimizer: the base optimizer.
      batch_size: the number of examples per batch.
      epochs: the reference number of gradients is that of so many epochs of the plain optimizer.
      warmup: the fraction of each training in which the learning rate rises.
      methods: the methods, separated by commas, or `all`.
      budgets: the budgets in units of the reference number, separated by commas.
      trials: the number of tuning trials of each method at each budget.
      more: the number of further trials each time that a range is widened.
      seeds: the number of test runs of each method at each budget.
      flatness: `no`, or `spectrum` for λ_max and trace of the test runs.
    """

    data: str
    train_size: int | None
    label_noise: float
    model: str
    dtype: str
    augment: bool
    optimizer: str
    batch_size: int
    epochs: int
    warmup: float
    methods: str
    budgets: str
    trials: int
    more: int
    seeds: int
    flatness: str


def complete(**given: Any) -> Options:
    """Returns all options, with defaults that suit the data and the network.

    Args:
      **given: fields of `Options`; None stands for the default.

    Raises:
      UsageError: if an option is out of its range or `budgets` is not valid.
    """
    options = suited(given)
    own = {
        "train_size": {"fashion_mnist": 6000, "cifar10": 10_000}.get(options["data"]),
        "warmup": 0.1 if options["data"] == "text" else 0.0,
        "methods": ALL,
        "budgets": ",".join(f"{budget:g}" for budget in BUDGETS),
        "trials": 12,
        "more": 4,
        "flatness": "spectrum",
    }
    completed = Options(**own | options)
    _check(completed)
    return completed


def budgets_of(options: Options) -> list[float]:
    """Returns the budgets in units of the reference number of gradients, in ascending order.

    Raises:
      UsageError: if a budget is not a positive number or is given twice.
    """
    try:
        found = sorted(float(word) for word in options.budgets.split(","))
    except ValueError:
        found = []
    if not found or not all(0 < one < math.inf for one in found) or len({*found}) < len(found):
        raise UsageError(
            f"--budgets {options.budgets} is not valid. Give different positive numbers separated "
            "by commas, in units of the reference number of gradients, as in "
            "--budgets 0.125,0.25,0.5,1."
        )
    return found


def common_ranges(optimizer: str) -> dict[str, Range]:
    """Returns the ranges of learning rate and weight decay, which are the same for all methods.

    The lower end of the weight decay is not widened, because smaller weight decays do not matter
    in a training of this length.
    """
    if optimizer == "adamw":
        return {
            "learning_rate": Range(3e-4, 1e-2),
            "weight_decay": Range(1e-3, 0.3, least=1e-3),
        }
    return {
        "learning_rate": Range(0.02, 0.5),
        "weight_decay": Range(1e-5, 1e-2, least=1e-5),
    }


def _check(options: Options) -> None:
    check_training(options._asdict(), {"flatness": FLATNESS})
    least = {"epochs": 1, "trials": 1, "more": 0, "seeds": 1, "batch_size": 1, "train_size": 1}
    check_at_least(options._asdict(), least)
    if options.seeds > TUNING_SEED:
        raise UsageError(f"--seeds {options.seeds} is out of range: at most {TUNING_SEED}.")
    if not 0 <= options.warmup < 1:
        raise UsageError(f"--warmup {options.warmup} is out of range: it must be in [0, 1).")
    if not 0 <= options.label_noise < 1:
        raise UsageError(
            f"--label-noise {options.label_noise} is out of range: it must be in [0, 1), for "
            "example 0.4 for 40%."
        )
    budgets_of(options)
