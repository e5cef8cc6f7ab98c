"""Friendly SAM (F-SAM): SAM that perturbs along the noise of the gradient only.

d = ∇L(θ + ρ u/‖u‖) with u = g − σm, where m is a moving average of the gradients

The average m estimates the gradient of the whole data set, so u is the part of g that is specific
to the batch. A step costs two gradients.

Li et al., 'Friendly Sharpness-Aware Minimization', CVPR 2024, arXiv 2403.12350.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_between, check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_stateful_direction
from flatreg._core.tree import mix, new_if_finite, shift, wide_zeros
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


class FriendlySAMState(NamedTuple):
    """State of :func:`friendly_sam`.

    Attributes:
      average: the moving average m of the gradients, in at least float32; zero before the first
        step.
    """

    average: Grads


def friendly_sam(
    rho: ScalarOrSchedule = 0.2,
    sigma: ScalarOrSchedule = 1.0,
    decay: ScalarOrSchedule = 0.9,
    *,
    scale: Scale | None = None,
) -> Method:
    r"""Friendly SAM (F-SAM): replaces g by ∇L(θ + ρ T²u/‖Tu‖) with u = g − σm.

    After the shift, the moving average becomes m ← λm + (1 − λ)g. On the first step, the shift is
    along g, as in SAM, and m becomes g. ``sigma=0`` is SAM. The method descends L(θ + sg(ε)), where
    sg (stop-gradient) means that the shift ε is treated as a constant in differentiation.

    Entries of g that are not finite do not enter the average.

    This differs from the implementation in pytorch_optimizer as follows:

    1. The norm ‖Tu‖ is computed in the dtype of the parameters, or in float32 if it is narrower,
       and no constant is added to it. There, it is computed in float32 for all dtypes, and 1e-12 is
       added.

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule.
      sigma: the weight σ ≥ 0 of the average m that is subtracted, a number or a schedule.
      decay: the decay rate λ in [0, 1] of the average, a number or a schedule. The paper uses
        values from 0.6 to 0.95.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients, and the state contains one copy of the parameters.

    Raises:
      ValueError: if ``rho`` or ``sigma`` is a negative Python number, or if ``decay`` is a Python
        number outside [0, 1].
      TypeError: if ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w, tx = jnp.array([3.0, 4.0]), flatreg.friendly_sam(rho=5.0)
      >>> d, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> print(d, state.inner.average)
      [6. 8.] [3. 4.]
      >>> d, state = tx.update(w + 1, state, w, grad_fn=grad_fn)  # u = (1, 1)
      >>> print(d)
      [6.535534 7.535534]

    References:
      Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_, CVPR
      2024.
    """
    check_nonnegative(rho=rho, sigma=sigma)
    check_between(0, 1, decay=decay)
    check_scale(scale)

    def direction(
        grad_fn: GradFn,
        params: Params,
        g: Grads,
        state: FriendlySAMState,
        *,
        rho: Scalar,
        sigma: Scalar,
        decay: Scalar,
        step: jax.Array,
    ) -> tuple[Grads, FriendlySAMState]:
        first = step == 0
        noise = mix((1, g), (jnp.where(first, 0, -sigma), state.average))  # u = g − σm
        decay = jnp.where(first, 0, decay)
        average = mix((decay, state.average), (1 - decay, g))  # λm + (1 − λ)g
        d = grad_fn(shift(params, noise, rho, checked_scale(scale, params)))  # ∇L(θ + ρT²u/‖Tu‖)
        return d, FriendlySAMState(new_if_finite(average, state.average))

    scalars = {"rho": rho, "sigma": sigma, "decay": decay}
    return from_stateful_direction(_first_state, direction, **scalars, step=lambda count: count)


def _first_state(params: Params) -> FriendlySAMState:
    return FriendlySAMState(wide_zeros(params))
