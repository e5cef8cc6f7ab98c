"""A method of the frontier: what is tuned of it, what it costs, and how it trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import flatreg
from benchmarks.frontier.tuning import Range

Values = Mapping[str, Any]  # hyperparameters by name: numbers or traced arrays


class Contender(NamedTuple):
    """A method as it takes part in a frontier.

    Attributes:
      method: makes the gradient transformation from the hyperparameters in `tuned`. None stands for
        the plain gradient.
      gradients: gradient evaluations per step on which the method is applied; see `period`.
      tuned: the hyperparameters of the method that are tuned, besides learning rate and weight
        decay.
      every: the method is applied on every so many steps.
      period: every so many of the steps with the method take `gradients`, the others one gradient.
      tail: the method is applied on this fraction of the steps, the last ones. Before, the radius
        of a wrapper is zero.
      ascent_fraction: the fraction of the batch that the clean gradient is computed on.
      averaging: whether the weights that are evaluated are an exponential moving average. The
        hyperparameter `horizon` is its time constant as a fraction of the training.
      wrapper: for methods that wrap the whole optimizer: `wrapper(base, values)` returns the
        wrapped optimizer. Such a method costs one gradient per step.
      decaying: whether the radius of a wrapper is multiplied by the learning rate relative to its
        peak.
      arrange: reorders the batches: it maps an array of batches, one per row, to the batches in
        the order of the steps. None keeps the order.
      evaluated: `evaluated(opt_state, params)` returns the parameters to evaluate, if they are not
        the ones that are trained.
      train_step: a step `(state, batch) -> (state, metrics)` in place of that of `flatreg.linen`.
    """

    method: Callable[..., Any] | None = None
    gradients: float = 1.0
    tuned: Mapping[str, Range] = {}
    every: int = 1
    period: int = 1
    tail: float = 1.0
    ascent_fraction: float = 1.0
    averaging: bool = False
    wrapper: Callable[[optax.GradientTransformation, Values], Any] | None = None
    decaying: bool = False
    arrange: Callable[[np.ndarray], np.ndarray] | None = None
    evaluated: Callable[[Any, Any], Any] | None = None
    train_step: Callable[..., Any] | None = None


def gradients(contender: Contender, steps: int) -> float:
    """Returns how many gradient evaluations a number of steps takes, by the declared costs."""
    first = first_step(contender, steps)
    applied = sum(1 for step in range(0, steps, contender.every) if step >= first)
    full = -(-applied // contender.period)  # steps at full cost: the first, then one per period
    return contender.ascent_fraction * steps + (contender.gradients - 1) * full


def affordable_steps(contender: Contender, budget: float) -> int:
    """Returns the largest number of steps that takes at most `budget` gradients, but at least 1."""
    low, high = 1, max(1, math.ceil(budget / contender.ascent_fraction))
    while low < high:
        middle = (low + high + 1) // 2
        # The tolerance is for sums such as 10 · 1.1, which exceeds 11 by rounding.
        if gradients(contender, middle) <= budget * (1 + 1e-9):
            low = middle
        else:
            high = middle - 1
    return low


def first_step(contender: Contender, steps: int) -> int:
    """Returns the first step with the method, counted from 0."""
    return steps - math.ceil(round(contender.tail * steps, 6))


def optimizer(
    contender: Contender, name: str, values: Values, steps: Any, first: Any, warmup: float
) -> optax.GradientTransformation:
    """Returns the whole chain: the method, weight decay, and the optimizer with its schedule.

    Args:
      contender: the method.
      name: `sgd` (with momentum 0.9) or `adamw`.
      values: the hyperparameters; they may be traced.
      steps: the number of training steps; it may be traced.
      first: the first step with the method; it may be traced.
      warmup: the fraction of the steps in which the learning rate rises linearly from 0.
    """
    peak, decay = values["learning_rate"], values["weight_decay"]

    def schedule(step: Any) -> Any:
        progress = step / steps
        rising = progress / max(warmup, 1e-9)
        falling = (1 + jnp.cos(jnp.pi * (progress - warmup) / (1 - warmup))) / 2
        return peak * jnp.where(progress < warmup, rising, falling)

    if name == "adamw":
        base = optax.adamw(schedule, weight_decay=decay)
    else:
        # The decay comes after the method, so that no method perturbs along it.
        base = optax.chain(optax.add_decayed_weights(decay), optax.sgd(schedule, momentum=0.9))
    if contender.wrapper is not None:
        if contender.decaying or contender.tail < 1:

            def scheduled(radius: Any) -> Callable[[Any], Any]:
                decayed = contender.decaying
                share = (lambda step: schedule(step) / peak) if decayed else jnp.ones_like
                return lambda step: jnp.where(step < first, 0, radius * share(step))

            values = {key: scheduled(values[key]) for key in contender.tuned}
        return contender.wrapper(base, values)
    if contender.method is None:
        return optax.with_extra_args_support(base)
    method = contender.method(**{key: values[key] for key in contender.tuned})
    if contender.every > 1:
        method = flatreg.every(method, contender.every)
    if contender.tail < 1:
        method = flatreg.after(method, first)
    return optax.chain(method, base)
