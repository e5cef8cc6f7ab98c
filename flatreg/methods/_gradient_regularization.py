"""Explicit gradient regularization (EGR): L + μ‖∇L‖², the implicit penalty of gradient descent.

To second order in the step size h, gradient descent follows the gradient flow of
L + (h/4)‖∇L‖². Small steps with μ = h/4 therefore imitate gradient descent with step size h. The
gradient of the penalized loss is g + 2μHg, which costs one gradient and one Hessian-vector product.

Barrett and Dherin, 'Implicit Gradient Regularization', ICLR 2021, arXiv 2009.11162.
"""

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import mix, norm, norm_gradient, scaled
from flatreg.typing import GradFn, Grads, Hvp, Method, Params, Scalar, ScalarOrSchedule, Scale


def gradient_regularization(
    mu: ScalarOrSchedule = 0.05, *, hvp: Hvp | None = None, scale: Scale | None = None
) -> Method:
    r"""Explicit gradient regularization (EGR): replaces g by g + 2μHT²g, descending L + μ‖T∇L‖².

    On a quadratic, an eigenvalue a of the Hessian becomes a(1 + 2μa) for T = 1. Gradient descent
    with step size h is then stable only if h·a(1 + 2μa) < 2.

    The paper writes the penalty as μ·m·R_IG, where R_IG = ‖∇L‖²/m over m parameters.

    If the loss contains ``stop_gradient`` or a straight-through estimator, exact Hessian-vector
    products treat the stopped parts as constants. They can have the opposite sign of finite
    differences of ``grad_fn``, and so can the penalty. :func:`flatreg.exact_hvp` shows an example.

    Args:
      mu: the weight μ ≥ 0 of the penalty, in units of a learning rate, a number or a schedule.
        The implicit penalty of gradient descent with step size h has the weight h/4. The paper uses
        values up to about 0.1.
      hvp: how to compute Hessian-vector products; None means :func:`flatreg.exact_hvp`.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. The gradient of a leaf with a factor of zero is left out of the penalty. T is treated
        as a constant in differentiation.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs one gradient
      and one Hessian-vector product (about three gradients).

    Raises:
      ValueError: if ``mu`` is a negative Python number.
      TypeError: if ``hvp`` or ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.gradient_regularization(mu=0.25)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # (1 + 2μ) w
      [4.5 6. ]

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      ICLR 2021.
    """
    check_nonnegative(mu=mu)
    check_scale(scale)
    linearize = resolve_hvp(hvp)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, mu: Scalar) -> Grads:
        factors = checked_scale(scale, params)
        _, hessian = linearize(grad_fn, params)
        # The normalized vector T²g/‖Tg‖ does not overflow or underflow, whereas T²g could.
        size = norm(scaled(factors, g))
        penalty = hessian(norm_gradient(g, scale=factors))
        return mix((1, g), (2 * mu * size, penalty))  # g + 2μ‖Tg‖ H T²g/‖Tg‖ = g + 2μHT²g

    return from_direction(direction, mu=mu)
