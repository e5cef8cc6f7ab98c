"""The methods by name, what a step of each costs, and the grammar by which `--methods` names them.

    sam:rho=0.2                         a method and its hyperparameters
    sam:rho=0.2:every=5                 on every fifth step only, plain gradients in between
    sam:rho=0.2:after=200               from step 200 on, plain gradients before
    sam:rho=0.05+gam:rho=0.1:alpha=1    the sum of what both add to the gradient
    sam:rho=0.4:ascent_fraction=0.1     the clean pass sees a tenth of the batch

A new method is one row in `METHODS`.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

import flatreg
from benchmarks.common.cli import UsageError
from flatreg import lipschitz


class Entry(NamedTuple):
    """A row of the registry: factory, gradients a step, hyperparameters with values to try."""

    factory: Callable[..., optax.GradientTransformation]
    gradients: float
    hyperparameters: dict[str, float]


def _perturbed(
    curvature: flatreg.CurvatureScale | None, sigma: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    """The noise is the same from every seed; initial weights and batches are not."""
    with jax.ensure_compile_time_eval():  # methods may be parsed inside of a trace
        key = jax.random.key(0)
    return flatreg.perturbed_gradient(key, sigma, curvature=curvature)


def _spectral(penalty: float = 0.03) -> optax.GradientTransformation:
    """One power iteration a step, from a start that is the same from every seed."""
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)
    return lipschitz.spectral_norm_penalty(penalty, key)


# An exact Hessian-vector product counts as two gradients, which is what it costs on a large net.
METHODS = {
    "sam": Entry(flatreg.sam, 2, {"rho": 0.05}),
    "asam": Entry(flatreg.asam, 2, {"rho": 0.5, "eta": 0.01}),
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
    # XLA drops the backward pass of the clean gradient, which goes unused.
    "perturbed_gradient": Entry(partial(_perturbed, None), 1.4, {"sigma": 0.01}),
    "scaled_perturbed_gradient": Entry(
        partial(_perturbed, flatreg.CurvatureScale(interval=10)), 1.6, {"sigma": 0.01}
    ),
    # Without the layers' linear maps convolutions count as circular and of stride 1.
    "spectral_norm_penalty": Entry(_spectral, 1, {"penalty": 0.03}),
}


WHEN = {"every": 1, "after": 0}  # what any method takes besides, and the least of it
ASCENDING = ("sam", "asam")  # what takes a direction from the clean gradient, and nothing else


class Method(NamedTuple):
    """One entry of `--methods`, ready to train; `cost` is in gradients a step once it acts."""

    label: str
    transform: optax.GradientTransformation
    cost: float
    ascent_fraction: float


def parse(methods: str, optimizer: str) -> list[Method]:
    """Reads `--methods`.

    Args:
      methods: specifications separated by commas, such as `sgd,sam:rho=0.2`. The plain gradient
        goes by the name of the base optimizer.
      optimizer: that name.
    """
    parsed = [_method(spec.strip(), optimizer) for spec in methods.split(",")]
    labels = [method.label for method in parsed]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--methods names {label} twice: give each method and setting once.")
    return parsed


def _method(spec: str, optimizer: str) -> Method:
    if spec == optimizer:
        return Method(spec, optax.identity(), 1, 1.0)
    # The clean pass belongs to the whole step, so its fraction stands behind the last summand.
    rest, _, text = spec.rpartition(":ascent_fraction=")
    if rest and ":" in text:
        raise UsageError(f"In {spec!r}: ascent_fraction stands last, behind {text!r}.")
    fraction = _number(text, spec) if rest else 1.0
    if not 0 < fraction <= 1:
        raise UsageError(f"In {spec!r}: ascent_fraction must lie in (0, 1], as in 0.1.")
    labels, transforms, costs = zip(
        *(_summand(part.strip(), spec, optimizer) for part in (rest or spec).split("+")),
        strict=True,
    )
    if fraction < 1 and not _only_ascends(rest):
        raise UsageError(
            f"{spec!r} has a use for the whole batch's gradient, so it cannot take it from a part: "
            f"{' and '.join(ASCENDING)} can, alone and acting on every step. Write {rest}."
        )
    return Method(
        label="+".join(labels) + (f":ascent_fraction={fraction:g}" if fraction < 1 else ""),
        transform=flatreg.combine(*transforms),
        cost=fraction + sum(cost - 1 for cost in costs),
        ascent_fraction=fraction,
    )


def _only_ascends(spec: str) -> bool:
    """Whether the clean gradient goes into the direction of an ascent and nowhere else."""
    name, *settings = spec.split(":")
    is_rare = any(one.partition("=")[0] in WHEN for one in settings)
    return name in ASCENDING and "+" not in spec and not is_rare


def _summand(spec: str, whole: str, optimizer: str) -> tuple[str, Any, float]:
    """One method of a sum: its label, its transformation and its gradients a step."""
    name, *settings = spec.split(":")
    if name == optimizer:
        raise UsageError(
            f"In {whole!r}: {optimizer} is the plain gradient of the whole batch, which takes no "
            f"settings and adds nothing to a sum. Write {optimizer} alone."
        )
    if name not in METHODS:
        raise UsageError(
            f"Unknown method {name!r} in {whole!r}. With --optimizer {optimizer}, --methods takes "
            f"{optimizer} (the plain gradient), {', '.join(_usage(name) for name in METHODS)}, "
            "separated by commas; + adds methods up."
        )
    entry, values = METHODS[name], {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in (*entry.hyperparameters, *WHEN) or key in values:
            raise UsageError(
                f"In {whole!r}: {name} cannot take {setting!r}, or has it twice. Write "
                f"{_usage(name)}, with :every=5 for a method that acts on each fifth step only, or "
                ":after=200 for one that acts from step 200 on."
            )
        values[key] = _number(text, whole)
    label = ":".join([name, *(f"{key}={value:g}" for key, value in values.items())])
    every, after = (values.pop(key, least) for key, least in WHEN.items())
    for key, value in (("every", every), ("after", after)):
        if value < WHEN[key] or value != round(value):
            raise UsageError(
                f"In {whole!r}: {key} must be a whole number from {WHEN[key]}, as in {key}=5."
            )
    parameters = inspect.signature(entry.factory).parameters
    required = {
        key: value
        for key, value in entry.hyperparameters.items()
        if parameters[key].default is inspect.Parameter.empty
    }
    try:
        transform = entry.factory(**required | values)
    except (TypeError, ValueError) as error:  # flatreg's own check, or one that is missing
        raise UsageError(f"In {whole!r}: {error} Write for example {_usage(name)}.") from error
    if every > 1:
        transform = flatreg.every(transform, int(every))
    if after > 0:
        transform = flatreg.after(transform, int(after))
    return label, transform, 1 + (entry.gradients - 1) / every


def _usage(name: str) -> str:
    return ":".join([name, *(f"{k}={v:g}" for k, v in METHODS[name].hyperparameters.items())])


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"In {whole!r}: {text!r} is no finite number; write one as in rho=0.1.")
    return value
