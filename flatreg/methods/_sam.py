"""Sharpness-aware minimization (SAM): the gradient at the approximate worst point in a ball.

min_θ max_{‖ε‖ ≤ ρ} L(θ + ε), where the inner maximum is approximated to first order: ε = ρ g/‖g‖

A step costs two gradients.

Foret, Kleiner, Mobahi and Neyshabur, 'Sharpness-Aware Minimization for Efficiently Improving
Generalization', ICLR 2021, arXiv 2010.01412.
"""

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.tree import shift
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


def sam(rho: ScalarOrSchedule = 0.05, *, scale: Scale | None = None) -> Method:
    r"""Sharpness-aware minimization (SAM): replaces g by ∇L(θ + ρ T²g/‖Tg‖).

    The shift ε = ρ T²g/‖Tg‖ is a normalized step of gradient ascent. It maximizes the first-order
    expansion of L(θ + ε) over the ball ‖T⁻¹ε‖ ≤ ρ. The method descends L(θ + sg(ε)), where sg
    (stop-gradient) means that ε is treated as a constant in differentiation.

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule. The paper uses
        0.05; values of 0.1 to 0.4 suit label noise and larger batches.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed. ``flatreg.on(predicate)`` makes such
        a function. ``lambda p: jax.tree.map(lambda w: 1.0 * (w.ndim > 1), p)`` leaves out biases
        and normalization layers.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients.

    Raises:
      ValueError: if ``rho`` is a negative Python number.
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
    """
    check_nonnegative(rho=rho)
    check_scale(scale)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar) -> Grads:
        factors = checked_scale(scale, params)
        return grad_fn(shift(params, g, rho, factors))  # ∇L(θ + ρ T²g/‖Tg‖)

    return from_direction(direction, rho=rho)
