"""LookSAM: SAM on every k-th step, and on the steps in between a stored part of its gradient.

d = g̃ = ∇L(θ + ρĝ) on the steps 0, k, 2k, …, which store g_v = g̃ − ⟨g̃, ĝ⟩ĝ
d = g + α‖g‖ g_v/‖g_v‖ on the other steps

The part g_v of the SAM gradient that is orthogonal to g changes more slowly than g. A step costs
1 + 1/k gradients on average.

Liu et al., 'Towards Efficient and Scalable Sharpness-Aware Minimization', CVPR 2022,
arXiv 2203.02714.
"""

from typing import Any, NamedTuple

import jax
import optax

from flatreg._core.checks import check_nonnegative, check_period, check_scale, checked_scale
from flatreg._core.directions import from_stateful_direction
from flatreg._core.tree import inner, mix, new_if_finite, norm, shift, unit, wide_zeros
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


class LookSAMState(NamedTuple):
    """State of :func:`looksam`.

    Attributes:
      component: g_v, the part of the last SAM gradient that was orthogonal to the gradient, in at
        least float32; zero before the first step.
    """

    component: Grads


def looksam(
    rho: ScalarOrSchedule = 0.05,
    k: int | jax.Array = 10,
    alpha: ScalarOrSchedule = 0.7,
    *,
    scale: Scale | None = None,
) -> Method:
    r"""LookSAM: SAM on the steps 0, k, 2k, …, and g + α‖g‖ g_v/‖g_v‖ on the others.

    Here g_v = g̃ − ⟨g̃, ĝ⟩ĝ is the part of the last SAM gradient g̃ = ∇L(θ + ρ T²g/‖Tg‖) that was
    orthogonal to the gradient of that step. On the steps in between, the second gradient is skipped
    (``lax.cond``). This holds under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both
    branches. ``k=1`` is SAM, and with ``alpha=0`` the method equals ``every(sam(rho), k)``.

    Entries of g_v that are not finite keep their old value.

    This differs from the implementation in pytorch_optimizer as follows:

    1. g_v, ‖g‖ and ‖g_v‖ belong to the whole tree, as in the paper. There, each tensor has its own
       projection and its own norms, so that the two agree for a network with one tensor only.
    2. No constant is added to the norms. There, 1e-8 is added to ‖g_v‖ and 1e-12 to the norm in
       the shift, which is computed in float32 for all dtypes.

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule.
      k: the period, an integer of at least 1.
      alpha: the weight α ≥ 0 of the stored part, a number or a schedule.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs 1 + 1/k
      gradients on average, and the state contains one copy of the parameters.

    Raises:
      ValueError: if ``rho`` or ``alpha`` is a negative Python number, or if ``k`` is a Python
        number that is below 1 or not an integer.
      TypeError: if ``k`` is not a number, or ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2)
      >>> w = jnp.array([1.0, 1.0])
      >>> tx = flatreg.looksam(rho=0.5, k=2, alpha=1.0)
      >>> d, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(d.round(4))  # ∇L(w + 0.5 (1, 3)/√10)
      [1.1581 4.423 ]
      >>> d, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
      >>> print(d.round(3))  # (1, 3) + (−3, 1)
      [-2.  4.]

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, CVPR 2022.
    """
    check_nonnegative(rho=rho, alpha=alpha)
    check_period(k=k)
    check_scale(scale)

    def direction(
        grad_fn: GradFn,
        params: Params,
        g: Grads,
        state: LookSAMState,
        *,
        rho: Scalar,
        alpha: Scalar,
        step: jax.Array,
    ) -> tuple[Grads, LookSAMState]:
        def look() -> tuple[Grads, Any]:
            ahead = grad_fn(shift(params, g, rho, checked_scale(scale, params)))
            along = unit(g)
            component = mix((1, ahead), (-inner(ahead, along), along))  # g_v = g̃ − ⟨g̃, ĝ⟩ĝ
            return ahead, new_if_finite(component, state.component)

        def reuse() -> tuple[Grads, Any]:
            d = mix((1, g), (alpha * norm(g), unit(state.component)))  # g + α‖g‖ g_v/‖g_v‖
            return d, state.component

        def in_dtype(branch: Any) -> Any:  # Both branches must return the parameters' dtypes.
            d, component = branch()
            return optax.tree.cast_like(d, params), component

        d, component = jax.lax.cond(step % k == 0, lambda: in_dtype(look), lambda: in_dtype(reuse))
        return d, LookSAMState(component)

    scalars = {"rho": rho, "alpha": alpha}
    return from_stateful_direction(_first_state, direction, **scalars, step=lambda count: count)


def _first_state(params: Params) -> LookSAMState:
    return LookSAMState(wide_zeros(params))
