"""Single-step SAM (S²-SAM): the perturbation comes from the gradient of the previous step.

g̃ₜ = ∇L(θₜ + ρ g̃ₜ₋₁/‖g̃ₜ₋₁‖), on the batch of step t; the first step is plain

A step costs one gradient. The previous gradient belongs to another batch, so the shift increases
the loss of the current batch only as far as the gradients of both batches agree.

'A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate
Sparse Training', NeurIPS 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import (
    check_nonnegative,
    check_scalars,
    check_scale,
    check_wrapped_update,
    checked_base,
    checked_scale,
)
from flatreg._core.tree import ascent, mix, wide_zeros
from flatreg.typing import Grads, Method, Params, ScalarOrSchedule, Scale


class PreviousGradientSAMState(NamedTuple):
    """State of :func:`previous_gradient_sam`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      shift: the shift ε that is on the parameters now, in at least float32.
      inner_state: the state of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax does
    shift: Params
    inner_state: optax.OptState


def previous_gradient_sam(
    base: optax.GradientTransformation,
    rho: ScalarOrSchedule = 0.05,
    *,
    scale: Scale | None = None,
) -> Method:
    r"""Single-step SAM (S²-SAM): steps along ∇L(θ + ρ T²u/‖Tu‖), where u is the previous gradient.

    The parameters that training sees are θ + ε. The optimizer ``base`` sees the clean parameters θ,
    so weight decay acts on them. Use :func:`flatreg.eval_params` for evaluation. The wrapper must
    be the last link of a chain, because everything after it would change the shift.

    Args:
      base: the optimizer, for example ``optax.sgd(0.1, momentum=0.9)``, or a chain.
      rho: the radius ρ ≥ 0 of the shift in parameter space, a number or a schedule. Step t uses the
        radius of step t.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf, evaluated at
        the clean parameters; None means T = 1. Leaves with a factor of zero are not shifted.

    Returns:
      A transformation whose ``update`` needs ``params`` and the gradient at ``params``. A step
      costs one gradient, and the state contains one copy of the parameters.

    Raises:
      TypeError: if ``base`` is not a transformation, if ``rho`` is not a number, 0-d array or
        schedule, or if ``scale`` is not a function.
      ValueError: if ``rho`` is a negative Python number.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.previous_gradient_sam(optax.sgd(0.5), rho=5.0)
      >>> updates, state = tx.update(grad_fn(w), tx.init(w), w)
      >>> print(optax.apply_updates(w, updates))  # (1.5, 2) + 5 (3, 4)/5
      [4.5 6. ]

    References:
      'A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate
      Sparse Training', NeurIPS 2024.
    """
    base = checked_base("previous_gradient_sam", base)
    check_scalars(rho=rho)
    check_nonnegative(rho=rho)
    check_scale(scale)

    def init(params: Params) -> Any:
        zero = jnp.zeros((), jnp.int32)
        return PreviousGradientSAMState(zero, wide_zeros(params), base.init(params))

    def update(
        updates: Grads, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Grads, PreviousGradientSAMState]:
        check_wrapped_update("previous_gradient_sam", updates, params)
        clean = optax.tree.cast_like(mix((1, params), (-1, state.shift)), params)
        step, inner_state = base.update(updates, state.inner_state, clean, **extra)
        factors = checked_scale(scale, optax.apply_updates(clean, step)) if scale else None
        count: Any = optax.safe_increment(state.count)
        radius: Any = rho(count) if callable(rho) else rho
        shift = ascent(updates, radius, factors)  # ρ T²g̃/‖Tg̃‖
        shift = optax.tree.cast_like(shift, state.shift)
        moved = mix((1, step), (-1, state.shift), (1, shift))
        return moved, PreviousGradientSAMState(count, shift, inner_state)

    return Method(init, update)
