"""The loss scale of float16 training: scale the loss, unscale the gradients, adjust the scale.

Small gradients underflow in float16, so every pass of a step multiplies the loss by the scale and
divides the gradient by it. The scale is stored in the train state (Linen) or the optimizer (NNX) as
Flax's ``flax.training.dynamic_scale.DynamicScale``. It is constant during a step. After the step it
is adjusted once, by Flax's own rule, for all passes together.
"""

from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import mix
from flatreg._flax.oracles import transformed_oracle
from flatreg.typing import GradFn, Grads


class LossScale(Protocol):
    """The attributes of Flax's ``DynamicScale`` that are used here.

    Attributes:
      scale: the factor by which the loss is multiplied.
      fin_steps: the number of finite steps since the scale last changed.
      growth_factor: multiplies the scale after ``growth_interval`` finite steps.
      growth_interval: the number of finite steps after which the scale grows.
      backoff_factor: multiplies the scale after a step that was not finite.
      minimum_scale: a lower bound on the scale, or None.
    """

    @property
    def scale(self) -> Any: ...
    @property
    def fin_steps(self) -> Any: ...
    @property
    def growth_factor(self) -> float: ...
    @property
    def growth_interval(self) -> int: ...
    @property
    def backoff_factor(self) -> float: ...
    @property
    def minimum_scale(self) -> float | None: ...
    def replace(self, **overrides: Any) -> Self: ...


Scale = TypeVar("Scale", bound=LossScale)


def with_array_fields(dynamic_scale: Scale) -> Scale:
    """Return the loss scale with arrays in place of numbers, which avoids retracing.

    Args:
      dynamic_scale: the loss scale; its ``scale`` and ``fin_steps`` may be Python numbers.

    Returns:
      The same loss scale with a float32 ``scale`` and an int32 ``fin_steps``.
    """
    return dynamic_scale.replace(
        scale=jnp.asarray(dynamic_scale.scale, jnp.float32),
        fin_steps=jnp.asarray(dynamic_scale.fin_steps, jnp.int32),
    )


def scaled(loss: jax.Array, dynamic_scale: LossScale | None) -> jax.Array:
    """Return the loss times the scale.

    Args:
      loss: the loss of one pass, a scalar.
      dynamic_scale: the loss scale, or None, which leaves the loss unchanged.

    Returns:
      The scaled loss.
    """
    return loss if dynamic_scale is None else loss * dynamic_scale.scale


def unscaled(
    grads: Grads, grad_fn: GradFn, dynamic_scale: LossScale | None
) -> tuple[Grads, GradFn]:
    """Return the gradient and the oracle of the loss without the scale.

    Args:
      grads: the gradient of the scaled loss.
      grad_fn: the oracle of the scaled loss.
      dynamic_scale: the loss scale, or None, which leaves both unchanged.

    Returns:
      The gradient and the oracle, divided by the scale in at least float32.
    """
    if dynamic_scale is None:
        return grads, grad_fn
    scale = dynamic_scale.scale

    def unscale(grads: Grads) -> Grads:
        return mix((1 / scale, grads))  # in at least float32

    return unscale(grads), transformed_oracle(grad_fn, unscale)


def check_skipping(dynamic_scale: LossScale | None, skip_nonfinite: bool) -> None:
    """Check that steps are skipped if there is a loss scale, which would not shrink otherwise.

    Args:
      dynamic_scale: the loss scale, or None.
      skip_nonfinite: whether steps that are not finite are skipped.

    Raises:
      ValueError: if there is a loss scale and steps are not skipped.
    """
    if dynamic_scale is not None and not skip_nonfinite:
        raise ValueError(
            "skip_nonfinite=False cannot be used with a loss scale, because the scale is reduced "
            "on the steps that are skipped: remove skip_nonfinite, or remove dynamic_scale."
        )


def adjusted(dynamic_scale: Scale, finite: jax.Array) -> Scale:
    """Return the loss scale for the next step, by the rule of Flax's ``DynamicScale``.

    The scale grows after ``growth_interval`` finite steps in a row and shrinks after each step that
    is not finite. ``DynamicScale.value_and_grad`` applies this rule after every gradient; here it
    is applied once per step.

    Args:
      dynamic_scale: the loss scale of this step.
      finite: whether all passes of this step were finite, a boolean scalar.

    Returns:
      The loss scale of the next step.
    """
    scale = jnp.asarray(dynamic_scale.scale, jnp.float32)
    fin_steps = jnp.asarray(dynamic_scale.fin_steps, jnp.int32)
    grow = fin_steps == dynamic_scale.growth_interval
    grown = jnp.minimum(scale * dynamic_scale.growth_factor, np.finfo(np.float32).max)
    reduced = scale * dynamic_scale.backoff_factor
    if dynamic_scale.minimum_scale is not None:
        reduced = jnp.maximum(reduced, dynamic_scale.minimum_scale)
    return dynamic_scale.replace(
        scale=jnp.where(finite, jnp.where(grow, grown, scale), reduced),
        fin_steps=jnp.where(grow | ~finite, 0, fin_steps + 1),
    )
