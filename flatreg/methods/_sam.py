"""Sharpness-aware minimization (SAM): the gradient at the approximate worst point in a ball.

min_θ max_{‖ε‖ ≤ ρ} L(θ + ε), where the inner maximum is approximated to first order: ε = ρ g/‖g‖

A step costs two gradients.

Foret, Kleiner, Mobahi and Neyshabur, 'Sharpness-Aware Minimization for Efficiently Improving
Generalization', ICLR 2021, arXiv 2010.01412.
"""

import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.tree import norm, scaled, shift
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


def sam(
    rho: ScalarOrSchedule = 0.05,
    *,
    scale: Scale | None = None,
    loss_increase: ScalarOrSchedule | None = None,
) -> Method:
    r"""Sharpness-aware minimization (SAM): replaces g by ∇L(θ + ρ T²g/‖Tg‖).

    The shift ε = ρ T²g/‖Tg‖ is a normalized step of gradient ascent. It maximizes the first-order
    expansion of L(θ + ε) over the ball ‖T⁻¹ε‖ ≤ ρ. The method descends L(θ + sg(ε)), where sg
    (stop-gradient) means that ε is treated as a constant in differentiation.

    With ``loss_increase=σ``, the radius of each step is min(σ/‖Tg‖, ρ). To first order, the shift
    then increases the loss by σ, unless the bound ρ is smaller. This is the radius of LE-SAM, which
    anneals σ: ``sam(0.5, loss_increase=optax.cosine_decay_schedule(0.1, steps))``. The paper adds a
    constant to ‖g‖ in the denominator. Here the bound ρ takes its place.

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule. The paper uses
        0.05. Search values from 0.05 to 1, together with the learning rate.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed. ``flatreg.on(predicate)`` makes such
        a function. ``lambda p: jax.tree.map(lambda w: 1.0 * (w.ndim > 1), p)`` leaves out biases
        and normalization layers.
      loss_increase: the first-order increase σ ≥ 0 of the loss, a number or a schedule. ``rho`` is
        then an upper bound on the radius. None means the radius ``rho`` itself.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients.

    Raises:
      ValueError: if ``rho`` or ``loss_increase`` is a negative Python number.
      TypeError: if ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = optax.chain(flatreg.sam(rho=0.5), optax.sgd(1.0))
      >>> updates, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(updates)  # −(w + ρ w/5)
      [-3.3 -4.4]

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021.

      Wang et al., `Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of
      Sharpness-Aware Minimization <https://arxiv.org/abs/2605.10183>`_, ICML 2026 (LE-SAM).
    """
    scalars = {"rho": rho}
    if loss_increase is not None:
        scalars["loss_increase"] = loss_increase
    check_nonnegative(**scalars)
    check_scale(scale)

    def direction(
        grad_fn: GradFn,
        params: Params,
        g: Grads,
        *,
        rho: Scalar,
        loss_increase: Scalar | None = None,
    ) -> Grads:
        factors = checked_scale(scale, params)
        if loss_increase is not None:
            size = norm(scaled(factors, g))
            rho = jnp.where(loss_increase < rho * size, loss_increase / size, rho)  # min(σ/‖Tg‖, ρ)
        return grad_fn(shift(params, g, rho, factors))  # ∇L(θ + ρ T²g/‖Tg‖)

    return from_direction(direction, **scalars)
