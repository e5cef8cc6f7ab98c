"""Stable SAM (SSAM): the SAM gradient with the length of the gradient at the parameters.

d = ‖g‖ g̃/‖g̃‖ with g̃ = ∇L(θ + ρĝ)

Near a minimum, the SAM gradient is longer than the gradient itself, which makes SAM less stable
than gradient descent at the same learning rate. The renormalization removes this difference. A step
costs two gradients.

Tan et al., 'Stabilizing Sharpness-Aware Minimization Through a Simple Renormalization Strategy',
2024, arXiv 2401.07250.
"""

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.tree import mix, norm, shift, unit
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


def stable_sam(rho: ScalarOrSchedule = 0.05, *, scale: Scale | None = None) -> Method:
    r"""Stable SAM (SSAM): replaces g by ‖g‖ g̃/‖g̃‖ with g̃ = ∇L(θ + ρ T²g/‖Tg‖).

    The direction is SAM's, with the length of the gradient g. The method descends
    sg(‖g‖/‖g̃‖) L(θ + sg(ε)) with ε = ρ T²g/‖Tg‖, where sg (stop-gradient) means that its argument
    is treated as a constant in differentiation.

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients.

    Raises:
      ValueError: if ``rho`` is a negative Python number.
      TypeError: if ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.stable_sam(rho=5.0)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # 5 · (6, 8)/10
      [3. 4.]

    References:
      Tan et al., `Stabilizing Sharpness-Aware Minimization Through a Simple Renormalization
      Strategy <https://arxiv.org/abs/2401.07250>`_, 2024.
    """
    check_nonnegative(rho=rho)
    check_scale(scale)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar) -> Grads:
        ahead = grad_fn(shift(params, g, rho, checked_scale(scale, params)))
        return mix((norm(g), unit(ahead)))  # ‖g‖ g̃/‖g̃‖

    return from_direction(direction, rho=rho)
