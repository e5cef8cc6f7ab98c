"""What a loss function may return, and the metrics that a train step adds to it."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.observe import Observation
from flatreg._flax.opt_states import states_of_type

Metrics: TypeAlias = dict[str, jax.Array]
"""Metrics by name, such as ``{"loss": loss, "accuracy": accuracy}``."""

LossOutput: TypeAlias = jax.Array | tuple[jax.Array, Mapping[str, Any]]
"""What a loss function returns: ``loss`` or ``(loss, metrics)``."""


def loss_and_metrics(out: LossOutput) -> tuple[jax.Array, Metrics]:
    """Return the loss, and its metrics with the loss added under the name ``"loss"``.

    Args:
      out: what the user's loss function returned.

    Returns:
      The loss and the metrics.

    Raises:
      TypeError: if the loss is not a floating-point array, or the metrics are not a dict.
      ValueError: if the loss is not a scalar, or if another metric has the name ``"loss"``.
    """
    loss, metrics = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"loss_fn must return loss or (loss, metrics) with a dict of metrics, got {out!r}: "
            'write return loss, {"accuracy": accuracy}.'
        )
    if not hasattr(loss, "shape") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            "loss_fn must return a floating-point scalar, optionally together with a dict of "
            f'metrics, got {out!r}: write return loss, or return loss, {{"accuracy": accuracy}}.'
        )
    if loss.shape:
        raise ValueError(
            f"loss_fn must return a scalar, got an array of shape {loss.shape}. Average over the "
            "examples: return loss.mean()."
        )
    if metrics.get("loss", loss) is not loss:
        raise _name_is_taken("loss", "the loss that loss_fn returns")
    return loss, {**metrics, "loss": loss}


def step_metrics(metrics: Metrics, skipped: jax.Array, opt_state: optax.OptState) -> Metrics:
    """Return the metrics of a train step.

    Args:
      metrics: the metrics of the clean pass.
      skipped: whether this step was skipped, a boolean scalar.
      opt_state: the optimizer state after the step.

    Returns:
      The metrics of the clean pass, ``skipped``, and the fields of
      :class:`flatreg._core.observe.Observation` if the chain contains :func:`flatreg.observe`.

    Raises:
      ValueError: if the chain observes more than one method, or if a metric of the loss has the
        name of a metric that the step adds.
    """
    added = {"skipped": skipped, **_observation(opt_state)}
    for name in added.keys() & metrics.keys():
        raise _name_is_taken(name, "a metric that the train step adds")
    return {**metrics, **added}


def _name_is_taken(name: str, meaning: str) -> ValueError:
    return ValueError(
        f"loss_fn returns a metric named {name!r}, but this is the name of {meaning}. Rename your "
        f'metric: write return loss, {{"own_{name}": value}}.'
    )


def _observation(opt_state: optax.OptState) -> Metrics:
    observations = states_of_type(Observation, opt_state)
    if len(observations) > 1:
        raise ValueError(
            f"tx observes {len(observations)} methods, but the metrics can contain only one "
            "observation. Observe the methods together: "
            "flatreg.observe(flatreg.combine(flatreg.sam(0.05), flatreg.gam(0.1, 1.0)))."
        )
    return observations[0]._asdict() if observations else {}
