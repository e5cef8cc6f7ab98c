"""Penalizing the gradient norm (PGN): L + λ‖∇L‖ₚ, by a finite difference or exactly.

The gradient of L + λ‖∇L‖ₚ is g + λ H ∂‖g‖ₚ, which for p = 2 is g + λHĝ with ĝ = g/‖g‖. With the
finite difference Hĝ ≈ [∇L(θ + rĝ) − g]/r and λ = αr it becomes (1 − α) g + α ∇L(θ + rĝ). This
costs two gradients per step. For α = 1 it is SAM.

Zhao, Zhang and Hu, 'Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
Learning', ICML 2022, arXiv 2202.03599.

For adaptive optimizers, Zhao, Zhang and Hu propose three warm-ups over the first T steps in 'When
Will Gradient Regularization Be Harmful?', ICML 2024, arXiv 2406.09723:

    r-warm-up     penalized_gradient(r=optax.linear_schedule(0.0, r, T), alpha=alpha)
    λ-warm-up     penalized_gradient(r=r, alpha=optax.linear_schedule(0.0, alpha, T))
    zero-warm-up  after(penalized_gradient(r=r, alpha=alpha), T)
"""

import math

from flatreg._core.checks import (
    check_nonnegative,
    check_scale,
    checked_scale,
    is_number,
    is_scalar,
    static_args,
)
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import mix, norm_gradient, shift, unit
from flatreg.typing import GradFn, Grads, Hvp, Method, Params, Scalar, ScalarOrSchedule, Scale


def penalized_gradient(
    r: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 0.8,
    *,
    scale: Scale | None = None,
    normalize_clean: bool = False,
) -> Method:
    r"""PGN by finite differences: replaces g by (1 − α) g + α ∇L(θ + r T²g/‖Tg‖).

    Up to O(r), the method descends L + λ‖T∇L‖₂ with λ = αr. The function that it descends exactly
    is (1 − α) L(θ) + α L(θ + sg(ε)), where sg (stop-gradient) means that the shift ε = r T²g/‖Tg‖
    is treated as a constant in differentiation. ``alpha=1`` is SAM with ρ = r, and ``alpha=0`` is
    the plain gradient.

    WSAM with the weight γ in its coupled form, g + γ/(1 − γ) (∇L(θ + ρĝ) − g), is
    ``penalized_gradient(r=rho, alpha=gamma / (1 - gamma))``.

    With adaptive optimizers and a learning-rate warm-up, the penalty can be harmful. One of three
    warm-ups over the first T steps avoids this: ``r=optax.linear_schedule(0.0, 0.1, T)``
    (r-warm-up), ``alpha=optax.linear_schedule(0.0, 0.8, T)`` (λ-warm-up), or
    ``after(penalized_gradient(), T)`` (zero-warm-up).

    This differs from the authors' code as follows:

    1. The first term contains the gradient g, as in the paper. By default, their code uses the unit
       gradient ĝ there. To reproduce this, write ``normalize_clean=True``.
    2. The shift has length r exactly, because no constant is added to ‖g‖ in the denominator. A
       zero gradient gives a zero shift.

    Args:
      r: the length r ≥ 0 of the ascent step in parameter space, a number or a schedule. The paper
        uses 0.1 on CIFAR and 0.05 on ImageNet.
      alpha: the weight α ≥ 0 (usually in [0, 1]) of the perturbed gradient, a number or a schedule.
        The weight of the penalty is λ = αr.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.
      normalize_clean: whether the first term is (1 − α) ĝ, as in the authors' code. By default it
        is (1 − α) g, as in the paper.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two
      gradients.

    Raises:
      ValueError: if ``r`` or ``alpha`` is a negative Python number.
      TypeError: if ``scale`` is not a function or ``normalize_clean`` is not a Python bool.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.penalized_gradient(r=0.5, alpha=0.5)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # w + αr w/5
      [3.15 4.2 ]

    References:
      Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning <https://arxiv.org/abs/2202.03599>`_, ICML 2022.

      Zhao et al., `When Will Gradient Regularization Be Harmful?
      <https://arxiv.org/abs/2406.09723>`_, ICML 2024.

      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, KDD 2023 (WSAM).
    """
    check_nonnegative(r=r, alpha=alpha)
    check_scale(scale)
    if not isinstance(normalize_clean, bool):
        raise TypeError(
            f"normalize_clean must be True or False, got {normalize_clean!r}. "
            + static_args("normalize_clean")
        )

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, r: Scalar, alpha: Scalar) -> Grads:
        ahead = grad_fn(shift(params, g, r, checked_scale(scale, params)))
        clean = unit(g) if normalize_clean else g
        return mix((1 - alpha, clean), (alpha, ahead))  # (1 − α) g + α ∇L(θ + r T²g/‖Tg‖)

    return from_direction(direction, r=r, alpha=alpha)


def gradient_norm_penalty(
    penalty: ScalarOrSchedule = 0.1,
    *,
    ord: Scalar = 2,
    hvp: Hvp | None = None,
    scale: Scale | None = None,
) -> Method:
    r"""Exact PGN: descends L + λ‖T∇L‖ₚ, replacing g by g + λ H ∂‖Tg‖ₚ/∂g.

    Here ∂‖Tg‖ₚ/∂g = T·sign(Tg)|Tg|^{p−1}/‖Tg‖ₚ^{p−1}. For p = 2 the direction is g + λHT²g/‖Tg‖.
    For p = 2 and T = 1 it is g + λHĝ. It does not contain a factor ½, because ∇‖g‖₂ = Hĝ.

    For T = 1, ``gradient_norm_penalty(λ, hvp=finite_difference_hvp(r))`` is the same as
    ``penalized_gradient(r, λ/r)``.

    The penalty suits smooth activations (GELU, tanh). With ReLU it is often harmful, because the
    Hessian does not capture the kinks (arXiv 2401.10809).

    If the loss contains ``stop_gradient`` or a straight-through estimator, exact Hessian-vector
    products treat the stopped parts as constants. They can have the opposite sign of finite
    differences of ``grad_fn``, and so can the penalty. :func:`flatreg.exact_hvp` shows an example.

    Args:
      penalty: the weight λ ≥ 0 of the penalty, in units of length in parameter space, a number or a
        schedule.
      ord: the order p of the norm, 1 ≤ p < ∞, a number or a 0-d array. Because sign(0) = 0,
        coordinates with a zero gradient contribute nothing.
      hvp: how to compute Hessian-vector products; None means :func:`flatreg.exact_hvp`.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf, which are
        constants in differentiation; None means T = 1. Leaves with a factor of zero are not
        penalized.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs one gradient
      and one Hessian-vector product (about three gradients).

    Raises:
      ValueError: if ``penalty`` is a negative Python number, or if ``ord`` is a Python number that
        is infinite or below 1.
      TypeError: if ``ord`` is not a number, or if ``hvp`` or ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.gradient_norm_penalty(0.25)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # w + λ w/5
      [3.15 4.2 ]

    References:
      Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning <https://arxiv.org/abs/2202.03599>`_, ICML 2022.
    """
    check_nonnegative(penalty=penalty)
    check_scale(scale)
    if not is_scalar(ord):
        raise TypeError(
            f"ord must be a number or a 0-d array, got {ord!r}: for example, write ord=2."
        )
    if is_number(ord) and not 1 <= ord < math.inf:
        raise ValueError(f"ord must be finite and at least 1, got {ord}: for example, write ord=2.")
    linearize = resolve_hvp(hvp)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, penalty: Scalar) -> Grads:
        factors = checked_scale(scale, params)
        _, hessian = linearize(grad_fn, params)
        return mix((1, g), (penalty, hessian(norm_gradient(g, ord, factors))))  # g + λ H ∂‖Tg‖ₚ/∂g

    return from_direction(direction, penalty=penalty)
