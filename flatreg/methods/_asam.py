"""Adaptive sharpness-aware minimization (ASAM): SAM on a ball that is scaled by the weights.

min_θ max_{‖T⁻¹ε‖ ≤ ρ} L(θ + ε) with T = |θ| + η, to first order: ε = ρ T²g/‖Tg‖

A step costs two gradients.

Kwon, Kim, Park and Choi, 'ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning
of Deep Neural Networks', ICML 2021, arXiv 2102.11600.
"""

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg._core.directions import from_direction
from flatreg._core.tree import shift
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule


def asam(rho: ScalarOrSchedule = 0.5, eta: ScalarOrSchedule = 0.01) -> Method:
    r"""Adaptive SAM: replaces g by ∇L(θ + ρ T²g/‖Tg‖) with T = |θ| + η.

    This is :func:`flatreg.sam` with a scale. For η = 0 the sharpness max L(θ + ε) does not change
    when the weights are rescaled in a way that leaves the network's function unchanged. The method
    descends L(θ + sg(ε)), where sg (stop-gradient) means that ε is treated as a constant in
    differentiation.

    This differs from the authors' code as follows:

    1. Biases are scaled in the same way as all other weights. The authors use T = 1 for biases. To
       reproduce this, write ``sam(rho, scale=...)`` with a function that returns their T.

    Args:
      rho: the radius ρ ≥ 0, relative to the size of the weights, a number or a schedule.
      eta: the offset η ≥ 0 in T, a number or a schedule. With η > 0, weights that are zero are
        perturbed too.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients.

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
        factors = jax.tree.map(lambda w: jnp.abs(w) + eta, params)  # T = |θ| + η
        return grad_fn(shift(params, g, rho, factors))  # ∇L(θ + ρ T²g/‖Tg‖)

    return from_direction(direction, rho=rho, eta=eta)
