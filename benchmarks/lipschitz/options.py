"""The options of `python -m benchmarks.lipschitz`: their defaults and their checks."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.cli import UsageError, check_at_least, flag
from benchmarks.lipschitz.methods import METHODS, PLAIN, LipschitzMethod

DEFAULT_METHODS = (
    "weight_decay,spectral_penalty,orthogonality_penalty,spectral_normalization,projection,"
    "projection_upper_bound,input_gradient_penalty,margin_gradient_penalty"
)
STEPS = 1000  # of the generator, by default
CURVE = 60  # intervals between the radii of the figure


class LipschitzOptions(NamedTuple):
    """All options that affect the numbers; the manifest stores them in this order.

    Attributes:
      data: the name of a data set, or the path of an `.npz` file.
      evaluate_on: `test` or `validation`.
      train_size: the number of training examples, or None for all.
      model: `mlp` or `cnn`.
      methods: the methods, separated by commas, as `--methods` takes them.
      sweep: whether to try every strength of each method's grid.
      learning_rate: the initial learning rate of SGD, with a cosine schedule.
      batch_size: the number of examples per step.
      epochs: the number of epochs.
      seeds: the number of seeds.
      radii: the radii of certified accuracy in the table, in the 2-norm.
      noise: the standard deviation of the noise on each input.
      wgan: whether to train the Wasserstein GANs instead of the classifier.
      steps: the number of generator steps of the GANs.
    """

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

    @property
    def curve_radii(self) -> np.ndarray:
        """The radii of the certified accuracy in the figure, up to twice the largest of `radii`."""
        return np.linspace(0, 2 * self.radii[-1], CURVE + 1)


def complete(**chosen: Any) -> LipschitzOptions:
    """Returns the options with defaults for everything that is missing or None.

    Some defaults depend on other options: on the data set, and on `sweep`.

    Args:
      **chosen: fields of `LipschitzOptions`.

    Raises:
      UsageError: if a value is out of range.
    """
    chosen = {name: value for name, value in chosen.items() if value is not None}
    digits = chosen.get("data", "digits") == "digits"
    sweep = chosen.get("sweep", False)
    defaults = {
        "data": "digits",
        "evaluate_on": "validation" if sweep else "test",
        "train_size": None,
        "model": "mlp",
        "methods": DEFAULT_METHODS,
        "sweep": False,
        "learning_rate": 0.1 if digits else 0.05,
        "batch_size": 50 if digits else 100,
        "epochs": 40 if digits else 25,
        "seeds": 3 if sweep else 5,
        "radii": (0.1, 0.2, 0.4),
        "noise": 0.3,
        "wgan": False,
        "steps": STEPS,
    }
    options = LipschitzOptions(**(defaults | chosen))
    _check(options)
    return options


def parse_methods(text: str, model: str, sweep: bool) -> list[LipschitzMethod]:
    """Reads `--methods`.

    Args:
      text: the names, separated by commas, each with an optional strength after a colon.
      model: `mlp` or `cnn`, which decides the default strengths.
      sweep: whether a name without a strength stands for all strengths of its grid.

    Returns:
      The methods without duplicates. The first is plain training, because times are relative to it.
    """
    methods = [LipschitzMethod(PLAIN, 0.0)]
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, written = word.partition(":")
        if name not in METHODS:
            raise UsageError(f"Unknown method {name!r} in --methods. Choose {', '.join(METHODS)}.")
        if name == PLAIN:
            continue
        if sweep and not written:
            methods += [LipschitzMethod(name, strength) for strength in METHODS[name].grid]
            continue
        try:
            strength = float(written) if written else METHODS[name].strengths[model]
        except ValueError:
            strength = float("nan")
        if not 0 < strength < float("inf"):
            raise UsageError(
                f"--methods {word}: the strength must be a positive number, such as {name}:"
                f"{METHODS[name].strengths[model]:g}."
            )
        methods.append(LipschitzMethod(name, strength))
    return list(dict.fromkeys(methods))


def _check(options: LipschitzOptions) -> None:
    whole = ("epochs", "seeds", "steps", "batch_size", "train_size")
    check_at_least(options._asdict(), dict.fromkeys(whole, 1))
    allowed = {
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
            "--sweep chooses strengths, and the test set must not influence that choice: leave out "
            "--evaluate-on test, or leave out --sweep."
        )
