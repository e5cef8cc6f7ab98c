"""The methods by name, with their cost and their hyperparameters, and the syntax of `--methods`.

    sam:rho=0.2                         a method and its hyperparameters
    sam:rho=0.2:every=5                 on every fifth step; plain gradients on the other steps
    sam:rho=0.2:after=200               from step 200 on; plain gradients before
    sam:rho=0.05+gam:rho=0.1:alpha=1    the sum of what both methods add to the gradient
    sam:rho=0.4:ascent_fraction=0.1     the ascent direction comes from a tenth of the batch

To add a method, add a row to `METHODS`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

import flatreg
from benchmarks.common.cli import UsageError
from benchmarks.common.models import kernels
from flatreg import lipschitz

MOMENTUM = 0.9  # of SGD, the base optimizer


class Entry(NamedTuple):
    """A row of the registry.

    Attributes:
      factory: makes the gradient transformation from the hyperparameters.
      gradients: gradient evaluations per step; with `period`, on a step that is not plain.
      hyperparameters: the hyperparameters that `--methods` accepts, with example values.
      period: the hyperparameter k of a method that evaluates more than one gradient on every k-th
        step only.
    """

    factory: Callable[..., Any]
    gradients: float
    hyperparameters: dict[str, float]
    period: str | None = None

    def cost(self, values: Mapping[str, float], every: float = 1) -> float:
        """Returns the mean gradient evaluations per step.

        Args:
          values: the hyperparameters that are given; the others have the defaults of the factory.
          every: the method is applied on every so many steps.
        """
        if self.period is not None:
            default = inspect.signature(self.factory).parameters[self.period].default
            every *= values.get(self.period, default)
        return 1 + (self.gradients - 1) / every


def _perturbed(
    curvature: flatreg.CurvatureScale | None, sigma: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    """Perturbed gradients with one key for all seeds; initial weights and batches still differ."""
    with jax.ensure_compile_time_eval():  # methods may be parsed inside a trace
        key = jax.random.key(0)
    return flatreg.perturbed_gradient(key, sigma, curvature=curvature)


def _spectral(penalty: float = 0.03) -> optax.GradientTransformation:
    """A spectral norm penalty with one power iteration per step, and one key for all seeds."""
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)

    def penalty_for(params: Any) -> optax.GradientTransformation:
        operators = kernels.operators(params)
        return lipschitz.spectral_norm_penalty(penalty, key, operators=operators)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return penalty_for(params).update(updates, state, params)

    return optax.GradientTransformation(lambda params: penalty_for(params).init(params), update)


# An exact Hessian-vector product counts as two gradients: its cost on a large network.
METHODS = {
    "sam": Entry(flatreg.sam, 2, {"rho": 0.05}),
    "asam": Entry(flatreg.asam, 2, {"rho": 0.5, "eta": 0.01}),
    "gsam": Entry(flatreg.gsam, 2, {"rho": 0.05, "alpha": 0.4}),
    "friendly_sam": Entry(flatreg.friendly_sam, 2, {"rho": 0.2, "sigma": 1, "decay": 0.9}),
    "stable_sam": Entry(flatreg.stable_sam, 2, {"rho": 0.05}),
    "looksam": Entry(flatreg.looksam, 2, {"rho": 0.05, "k": 5, "alpha": 0.7}, period="k"),
    "penalized_gradient": Entry(flatreg.penalized_gradient, 2, {"r": 0.1, "alpha": 0.8}),
    "gradient_norm_penalty": Entry(flatreg.gradient_norm_penalty, 3, {"penalty": 0.1, "ord": 2}),
    "gradient_regularization": Entry(flatreg.gradient_regularization, 3, {"mu": 0.05}),
    "gam": Entry(flatreg.gam, 6, {"rho": 0.1, "alpha": 1}),
    "gam_accelerated": Entry(
        flatreg.gam_accelerated,
        4,
        {
            "rho": 0.2,
            "rho_prime": 0.02,
            "alpha": 0.6,
            "beta": 0.5,
            "gamma": 0.03,
            "clean_weight": 1,
        },
    ),
    # XLA removes the backward pass of the clean gradient, which is not used.
    "perturbed_gradient": Entry(partial(_perturbed, None), 1.4, {"sigma": 0.01}),
    "scaled_perturbed_gradient": Entry(
        partial(_perturbed, flatreg.CurvatureScale(interval=10)), 1.6, {"sigma": 0.01}
    ),
    # It treats convolutions as circular with stride 1.
    "spectral_norm_penalty": Entry(_spectral, 1, {"penalty": 0.03}),
}


WHEN = {"every": 1, "after": 0}  # the settings that every method accepts, with their least values
ASCENDING = ("sam", "asam")  # methods that use the clean gradient as the ascent direction only


class Method(NamedTuple):
    """One entry of `--methods`, ready to train.

    Attributes:
      label: the entry in its normal form, for example `sam:rho=0.2`.
      transform: the gradient transformation, for the head of a chain.
      cost: gradient evaluations per step; with `after`, from that step on.
      ascent_fraction: the part of the batch that the clean gradient is computed on.
    """

    label: str
    transform: optax.GradientTransformationExtraArgs
    cost: float
    ascent_fraction: float


def parse(methods: str, optimizer: str) -> list[Method]:
    """Reads the value of `--methods`.

    Args:
      methods: specifications separated by commas, for example `sgd,sam:rho=0.2`. The name of the
        base optimizer stands for plain gradients.
      optimizer: the name of the base optimizer.

    Raises:
      UsageError: if a specification is not valid or is given twice.
    """
    parsed = [_method(spec.strip(), optimizer) for spec in methods.split(",")]
    labels = [method.label for method in parsed]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(
                f"--methods contains {label} twice. Give each method with its settings only once."
            )
    return parsed


def _method(spec: str, optimizer: str) -> Method:
    if spec == optimizer:
        return Method(spec, optax.with_extra_args_support(optax.identity()), 1, 1.0)
    # The clean pass belongs to the whole sum, so its fraction follows the last summand.
    rest, _, text = spec.rpartition(":ascent_fraction=")
    if rest and ":" in text:
        raise UsageError(
            f"In {spec!r}: ascent_fraction must come last, after {text.partition(':')[2]!r}."
        )
    fraction = _number(text, spec) if rest else 1.0
    if not 0 < fraction <= 1:
        raise UsageError(
            f"In {spec!r}: ascent_fraction must be in (0, 1], for example ascent_fraction=0.1."
        )
    labels, transforms, costs = zip(
        *(_summand(part.strip(), spec, optimizer) for part in (rest or spec).split("+")),
        strict=True,
    )
    if fraction < 1 and not _only_ascends(rest):
        raise UsageError(
            f"{spec!r} needs the gradient of the whole batch, so it does not accept "
            f"ascent_fraction. Only {' and '.join(ASCENDING)} do, if used alone and on every step. "
            f"Write {rest}."
        )
    return Method(
        label="+".join(labels) + (f":ascent_fraction={fraction:g}" if fraction < 1 else ""),
        transform=flatreg.combine(*transforms),
        cost=fraction + sum(cost - 1 for cost in costs),
        ascent_fraction=fraction,
    )


def _only_ascends(spec: str) -> bool:
    """Whether the clean gradient is used as the ascent direction only."""
    name, *settings = spec.split(":")
    is_rare = any(one.partition("=")[0] in WHEN for one in settings)
    return name in ASCENDING and "+" not in spec and not is_rare


def _summand(spec: str, whole: str, optimizer: str) -> tuple[str, Any, float]:
    """Returns the label, the transformation and the gradients per step of one method of a sum."""
    name, *settings = spec.split(":")
    if name == optimizer:
        raise UsageError(
            f"In {whole!r}: {optimizer} is the plain gradient of the whole batch. It has no "
            f"settings and cannot be part of a sum. Write {optimizer} alone."
        )
    if name not in METHODS:
        raise UsageError(
            f"Unknown method {name!r} in {whole!r}. With --optimizer {optimizer}, --methods "
            f"accepts {optimizer} (the plain gradient) and "
            f"{', '.join(_usage(name) for name in METHODS)}, separated by commas; + adds methods "
            "up."
        )
    entry, values = METHODS[name], {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in (*entry.hyperparameters, *WHEN) or key in values:
            raise UsageError(
                f"In {whole!r}: {setting!r} is not a valid setting of {name}, or is given twice. "
                f"Write for example {_usage(name)}; add :every=5 to apply it on every fifth step "
                "only, or :after=200 to apply it from step 200 on."
            )
        values[key] = _number(text, whole)
    label = ":".join([name, *(f"{key}={value:g}" for key, value in values.items())])
    every, after = (values.pop(key, least) for key, least in WHEN.items())
    for key, value in (("every", every), ("after", after)):
        if value < WHEN[key] or value != round(value):
            raise UsageError(
                f"In {whole!r}: {key} must be a whole number of at least {WHEN[key]}, for example "
                f"{key}=5."
            )
    parameters = inspect.signature(entry.factory).parameters
    required = {
        key: value
        for key, value in entry.hyperparameters.items()
        if parameters[key].default is inspect.Parameter.empty
    }
    try:
        transform = entry.factory(**required | values)
    except (TypeError, ValueError) as error:  # the check of the factory
        raise UsageError(f"In {whole!r}: {error} Write for example {_usage(name)}.") from error
    if every > 1:
        transform = flatreg.every(transform, int(every))
    if after > 0:
        transform = flatreg.after(transform, int(after))
    return label, transform, entry.cost(values, every)


def _usage(name: str) -> str:
    return ":".join([name, *(f"{k}={v:g}" for k, v in METHODS[name].hyperparameters.items())])


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"In {whole!r}: {text!r} is not a finite number. Write a number, as in rho=0.1."
        )
    return value


def learning_rates(peak: float, warmup: float, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a cosine to zero, after a warmup.

    Args:
      peak: the largest learning rate.
      warmup: the fraction of the steps during which the learning rate increases from zero.
      steps: the number of training steps.
    """
    if increasing := int(warmup * steps):
        return optax.warmup_cosine_decay_schedule(0.0, peak, increasing, steps)
    return optax.cosine_decay_schedule(peak, steps)
