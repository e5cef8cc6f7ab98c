"""Explicit gradient regularization: L + μ‖∇L‖², the penalty that gradient descent implies.

Gradient descent with step h follows the flow of L + (h/4)‖∇L‖² to O(h²), so μ = h/4 at a small
step imitates the step h. Its gradient is g + 2μHg: one gradient and one Hessian-vector product.

Barrett and Dherin, 'Implicit Gradient Regularization', ICLR 2021, arXiv 2009.11162.
"""

import optax

from flatreg._core.checks import check_nonnegative
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import mix, norm, unit
from flatreg.typing import GradFn, Grads, Hvp, Params, Scalar, ScalarOrSchedule


def gradient_regularization(
    mu: ScalarOrSchedule = 0.05, *, hvp: Hvp | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""EGR: descends L + μ‖∇L‖², replacing g by g + 2μHg.

    On a quadratic with curvature a the curvature becomes a(1 + 2μa): gradient descent with step h
    is stable only while h·a(1 + 2μa) < 2.

    The paper writes the penalty as μ·m·R_IG, where R_IG = ‖∇L‖²/m over m parameters.

    Args:
      mu: μ ≥ 0, in units of a learning rate, a number or a schedule; h/4 is what gradient descent
        with step h implies, the paper goes up to some 0.1.
      hvp: how to multiply with the Hessian; None is :func:`flatreg.exact_hvp`.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; one gradient and one
      Hessian-vector product a step (about three gradients).

    Raises:
      ValueError: if ``mu`` is a negative Python number.
      TypeError: if ``hvp`` is no function.

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
    linearize = resolve_hvp(hvp)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, mu: Scalar) -> Grads:
        _, hessian = linearize(grad_fn, params)
        # Hĝ neither over- nor underflows where Hg would.
        return mix((1, g), (2 * mu * norm(g), hessian(unit(g))))  # g + 2μ‖g‖Hĝ = g + 2μHg

    return from_direction(direction, mu=mu)
