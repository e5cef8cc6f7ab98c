"""An optimizer whose parameters stand at a shifted point, where the next gradient is computed.

θ ← θ + step of the optimizer at θ,   ε = ρ T²u/‖Tu‖,   the parameters are θ + ε

The wrappers `momentum_sam` and `previous_gradient_sam` differ in the direction u only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import (
    check_arrays,
    check_nonnegative,
    check_scalars,
    check_scale,
    check_wrapped_update,
    checked_base,
    checked_scale,
)
from flatreg._core.tree import ascent, mix, wide_zeros
from flatreg.typing import Grads, Method, Params, ScalarOrSchedule, Scale


class ShiftedState(NamedTuple):
    """State of :func:`flatreg.momentum_sam` and :func:`flatreg.previous_gradient_sam`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      shift: the shift ε that is on the parameters now, in at least float32.
      inner_state: the state of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax does
    shift: Params
    inner_state: optax.OptState


def shifted(
    name: str,
    base: optax.GradientTransformation,
    rho: ScalarOrSchedule,
    scale: Scale | None,
    direction: Callable[[Grads, optax.OptState], Params],
    *,
    sign: int = 1,
) -> Method:
    """Returns the wrapper ``name``, which shifts the parameters by sign · ρ T²u/‖Tu‖.

    Args:
      name: the public name of the wrapper, for its error messages.
      base: the optimizer, which sees the clean parameters.
      rho: the radius ρ, a number or a schedule.
      scale: the factors T, evaluated at the clean parameters.
      direction: returns u, given the gradient of the step and the state of the optimizer after it.
      sign: 1 to shift along u, -1 to shift against it.
    """
    base = checked_base(name, base)
    check_scalars(rho=rho)
    check_nonnegative(rho=rho)
    check_scale(scale)

    def init(params: Params) -> Any:
        check_arrays(name, params)
        return ShiftedState(jnp.zeros((), jnp.int32), wide_zeros(params), base.init(params))

    def update(
        updates: Grads, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Grads, ShiftedState]:
        check_wrapped_update(name, updates, params)
        clean = optax.tree.cast_like(mix((1, params), (-1, state.shift)), params)
        step, inner_state = base.update(updates, state.inner_state, clean, **extra)
        factors = checked_scale(scale, optax.apply_updates(clean, step)) if scale else None
        count: Any = optax.safe_increment(state.count)
        radius: Any = rho(count) if callable(rho) else rho
        shift = ascent(direction(updates, inner_state), sign * radius, factors)  # ±ρ T²u/‖Tu‖
        shift = optax.tree.cast_like(shift, state.shift)
        moved = mix((1, step), (-1, state.shift), (1, shift))
        return moved, ShiftedState(count, shift, inner_state)

    return Method(init, update)
