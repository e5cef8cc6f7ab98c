"""Gradient norm aware minimization (GAM): penalizes the largest gradient norm in a neighborhood.

R¹_ρ(θ) = ρ max_{‖ε‖ ≤ ρ} ‖∇L(θ + ε)‖ ≈ ρ‖∇L(θ_adv)‖,  θ_adv = θ + ρ f/‖f‖,  f = ∇‖∇L‖ = Hĝ

R¹ is the first-order flatness. Algorithm 1 of the paper steps along g + αρ H(θ_adv)ĝ(θ_adv), which
costs two gradients and two Hessian-vector products. Algorithm 2 replaces both products by
differences of gradients and costs four gradients.

Zhang, Xu, Yu, Zou and Cui, 'Gradient Norm Aware Minimization Seeks First-Order Flatness and
Improves Generalization', CVPR 2023, arXiv 2303.03108.
"""

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import inner, mix, norm_gradient, shift, unit
from flatreg.typing import GradFn, Grads, Hvp, Method, Params, Scalar, ScalarOrSchedule, Scale


def gam(
    rho: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 1.0,
    *,
    hvp: Hvp | None = None,
    ascent_hvp: Hvp | None = None,
    scale: Scale | None = None,
) -> Method:
    r"""Gradient norm aware minimization (GAM), Algorithm 1: descends L + αρ‖T∇L(θ_adv)‖.

    The method replaces g by g + αρ H(θ_adv) T²g_adv/‖Tg_adv‖, where

    .. code-block:: text

      f = ∇‖T∇L‖ = H T²g/‖Tg‖    θ_adv = θ + ρ T²f/‖Tf‖    g_adv = ∇L(θ_adv)

    The shift from θ to θ_adv and the factors T, which are evaluated at θ, are treated as constants
    in differentiation. To add GAM to SAM, write ``combine(sam(0.05), gam(0.1, 1.0))``.

    This differs from the authors' code as follows:

    1. No constant ξ is added to ‖f‖. If f = 0, the parameters are not shifted.
    2. The Hessian-vector products are exact by default. The authors' code implements Algorithm 2,
       which is :func:`flatreg.gam_accelerated`.
    3. ``scale`` is an addition. The paper has T = 1.

    If the loss contains ``stop_gradient`` or a straight-through estimator, exact Hessian-vector
    products treat the stopped parts as constants. They can have the opposite sign of finite
    differences of ``grad_fn``, and so can the penalty. :func:`flatreg.exact_hvp` shows an example.

    Args:
      rho: the radius ρ ≥ 0 in parameter space, a number or a schedule.
      alpha: the weight α ≥ 0 of the penalty R¹, a number or a schedule.
      hvp: how to compute the Hessian-vector product at θ_adv; None means
        :func:`flatreg.exact_hvp`.
      ascent_hvp: how to compute f at θ; None means the same as ``hvp``. Only the direction of f is
        used. ``finite_difference_hvp(0.01)`` saves one gradient per step.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are neither perturbed nor penalized.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs two gradients
      and two Hessian-vector products (about six gradients).

    Raises:
      ValueError: if ``rho`` or ``alpha`` is a negative Python number.
      TypeError: if ``hvp``, ``ascent_hvp`` or ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 2.0]) * w**2) / 2)
      >>> w = jnp.array([3.0, 0.0])
      >>> tx = flatreg.gam(rho=0.5, alpha=0.5)
      >>> print(tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)[0])  # g + αρ H (1, 0)
      [3.25 0.  ]

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, CVPR 2023, Algorithm 1.
    """
    check_nonnegative(rho=rho, alpha=alpha)
    check_scale(scale)
    linearize = resolve_hvp(hvp)
    linearize_for_ascent = (
        linearize if ascent_hvp is None else resolve_hvp(ascent_hvp, "ascent_hvp")
    )

    def direction(
        grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar, alpha: Scalar
    ) -> Grads:
        factors = checked_scale(scale, params)
        _, hessian = linearize_for_ascent(grad_fn, params)
        uphill = hessian(norm_gradient(g, scale=factors))  # f = H T²g/‖Tg‖
        worst = shift(params, uphill, rho, factors)  # θ_adv = θ + ρ T²f/‖Tf‖
        g_worst, hessian_worst = linearize(grad_fn, worst)
        penalty = hessian_worst(norm_gradient(g_worst, scale=factors))
        return mix((1, g), (alpha * rho, penalty))  # g + αρ H(θ_adv) T²g_adv/‖Tg_adv‖

    return from_direction(direction, rho=rho, alpha=alpha)


def gam_accelerated(
    rho: ScalarOrSchedule = 0.2,
    rho_prime: ScalarOrSchedule = 0.02,
    alpha: ScalarOrSchedule = 0.6,
    beta: ScalarOrSchedule = 0.5,
    gamma: ScalarOrSchedule = 0.03,
    *,
    scale: Scale | None = None,
    clean_weight: ScalarOrSchedule | None = None,
) -> Method:
    r"""GAM, Algorithm 2: uses four gradients and no Hessian-vector product per step.

    With u[v] = T²v/‖Tv‖ and g₀ = g, the method replaces g by h₊ − γh₋^⊥, where

    .. code-block:: text

      g₁ = ∇L(θ + ρ′u[g₀])     h₀ = g₁ − g₀           θ₂ = θ + ρ u[h₀]
      g₂ = ∇L(θ₂)              g₃ = ∇L(θ₂ + ρ′u[g₂])
      h₊ = αg₁ + (1 − α)g₃     h₋ = βg₀ + (1 − β)g₂   h₋^⊥ = the part of h₋ orthogonal to h₊

    g₁ is the SAM gradient with radius ρ′, so for α = 1 and γ = 0 the method is SAM. Because h₀ is a
    difference of two gradients, both must come from the same examples: do not use an oracle with
    ``ascent_fraction`` below 1.

    The paper uses these hyperparameters:

    .. code-block:: text

      data and network        ρ     ρ′     β     α     γ
      CIFAR-100, ResNet      0.2   0.02   0.5   0.6   0.03   (the defaults)
      CIFAR-100, PyramidNet  0.2   0.04   0.3   0.5   0.05
      CIFAR-10, ResNet       0.2   0.03   0.1   0.1   0.05
      CIFAR-10, PyramidNet   0.2   0.03   0.1   0.1   0.03

    This differs from the authors' code as follows:

    1. The weight of g₀ in h₋ is β, as in the paper. In their code it is 1. To reproduce this, write
       ``clean_weight=1.0``.
    2. ``scale`` applies to all three shifts.

    Args:
      rho: the radius ρ ≥ 0 of the ascent on the gradient norm, a number or a schedule.
      rho_prime: the radius ρ′ ≥ 0 of the two shifts along a gradient, as in SAM, a number or a
        schedule.
      alpha: the weight α ≥ 0 of g₁ in h₊, a number or a schedule.
      beta: the weight β ≥ 0 of g₀ in h₋, a number or a schedule.
      gamma: the weight γ ≥ 0 of h₋^⊥, a number or a schedule.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf and is
        evaluated at θ; None means T = 1. Leaves with a factor of zero are not perturbed.
      clean_weight: the weight of g₀ in h₋, at least 0, a number or a schedule; None means β.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs four
      gradients.

    Raises:
      ValueError: if one of the scalars is a negative Python number.
      TypeError: if ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.gam_accelerated(rho_prime=0.5, alpha=1.0, gamma=0.0)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # SAM: w + ρ′ w/5
      [3.3 4.4]

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, CVPR 2023, Algorithm 2.
    """
    scalars = {"rho": rho, "rho_prime": rho_prime, "alpha": alpha, "beta": beta, "gamma": gamma}
    scalars["clean_weight"] = beta if clean_weight is None else clean_weight
    check_nonnegative(**scalars)
    check_scale(scale)

    def direction(
        grad_fn: GradFn,
        params: Params,
        g0: Grads,
        *,
        rho: Scalar,
        rho_prime: Scalar,
        alpha: Scalar,
        beta: Scalar,
        gamma: Scalar,
        clean_weight: Scalar,
    ) -> Grads:
        factors = checked_scale(scale, params)
        g1 = grad_fn(shift(params, g0, rho_prime, factors))  # ∇L(θ + ρ′u[g₀])
        h0 = mix((1, g1), (-1, g0))
        worst = shift(params, h0, rho, factors)  # θ₂ = θ + ρ u[h₀]
        g2 = grad_fn(worst)
        g3 = grad_fn(shift(worst, g2, rho_prime, factors))  # ∇L(θ₂ + ρ′u[g₂])
        plus = mix((alpha, g1), (1 - alpha, g3))  # h₊
        minus = mix((clean_weight, g0), (1 - beta, g2))  # h₋
        along = unit(plus)
        return mix((1, plus), (-gamma, minus), (gamma * inner(minus, along), along))  # h₊ − γh₋^⊥

    return from_direction(direction, **scalars)
