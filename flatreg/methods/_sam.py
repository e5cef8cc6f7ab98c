"""Sharpness-aware minimization: the gradient at the worst point of a ball, to first order.

SAM   min_θ max_{‖ε‖ ≤ ρ} L(θ + ε) ≈ L(θ + ρ ĝ)              Foret et al., arXiv 2010.01412
ASAM  the ball ‖T⁻¹ε‖ ≤ ρ with T = |θ| + η: ε = ρ T²g/‖Tg‖   Kwon et al., arXiv 2102.11600

Two gradients a step.
"""

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_function, check_nonnegative, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.tree import shift
from flatreg.typing import GradFn, Grads, Params, Scalar, ScalarOrSchedule, Scale


def sam(
    rho: ScalarOrSchedule = 0.05, *, scale: Scale | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""SAM: replaces g by ∇L(θ + ρ T²g/‖Tg‖), one gradient ascent step to the rim of a ball.

    Descends L(θ + sg(ε)), the loss at a shift ε that is constant for differentiation.

    Args:
      rho: radius ρ ≥ 0 of the ball in parameter space, a number or a schedule. 0.05 is the
        paper's; 0.1 to 0.4 suits label noise and larger batches.
      scale: T, a function ``params -> factors`` (one a weight or one a leaf), None for T = 1.
        Zeros keep a leaf unperturbed: ``lambda p: jax.tree.map(lambda w: 1.0 * (w.ndim > 1), p)``
        leaves out biases and norm layers.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; two gradients a step.

    Raises:
      ValueError: if ``rho`` is a negative Python number.
      TypeError: if ``scale`` is no function.

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
    check_function("scale", scale, "a function params -> T")

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar) -> Grads:
        return grad_fn(shift(params, g, rho, checked_scale(scale, params)))  # ∇L(θ + ρ T²g/‖Tg‖)

    return from_direction(direction, rho=rho)


def asam(
    rho: ScalarOrSchedule = 0.5, eta: ScalarOrSchedule = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM: SAM with T = |θ| + η, which a rescaling of the weights leaves alone.

    Replaces g by ∇L(θ + ρ T²g/‖Tg‖); descends L(θ + sg(ε)).

    This differs from the authors' code in:

    1. Biases are scaled as all weights are. The authors take T = 1 there: write
       ``sam(rho, scale=...)`` with the T that you want.

    Args:
      rho: radius ρ ≥ 0 in units of the weights' own size, a number or a schedule.
      eta: η ≥ 0, keeps zero weights moving, a number or a schedule.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; two gradients a step.

    Raises:
      ValueError: if ``rho`` or ``eta`` is a negative Python number.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([1.0, 0.0])
      >>> tx = flatreg.asam(rho=0.5, eta=0.0)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])
      [1.5 0. ]

    References:
      Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
      Deep Neural Networks <https://arxiv.org/abs/2102.11600>`_, ICML 2021.
    """
    check_nonnegative(rho=rho, eta=eta)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar, eta: Scalar) -> Grads:
        scale = jax.tree.map(lambda w: jnp.abs(w) + eta, params)  # T = |θ| + η
        return grad_fn(shift(params, g, rho, scale))  # ∇L(θ + ρ T²g/‖Tg‖)

    return from_direction(direction, rho=rho, eta=eta)
