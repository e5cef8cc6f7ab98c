"""Gradient norm aware minimization: descends first-order flatness, the worst gradient norm nearby.

R¹_ρ(θ) = ρ max_{‖ε‖ ≤ ρ} ‖∇L(θ + ε)‖ ≈ ρ‖∇L(θ_adv)‖,  θ_adv = θ + ρ f/‖f‖,  f = ∇‖∇L‖ = Hĝ

Algorithm 1 steps along g + αρ H(θ_adv)ĝ(θ_adv): two gradients and two Hessian-vector products.
Algorithm 2 replaces both products by differences of gradients: four gradients.

Zhang, Xu, Yu, Zou and Cui, 'Gradient Norm Aware Minimization Seeks First-Order Flatness and
Improves Generalization', CVPR 2023, arXiv 2303.03108.
"""

import optax

from flatreg._core.checks import check_function, check_nonnegative, checked_scale
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import inner, mix, shift, unit
from flatreg.typing import GradFn, Grads, Hvp, Params, Scalar, ScalarOrSchedule, Scale


def gam(
    rho: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 1.0,
    *,
    hvp: Hvp | None = None,
    ascent_hvp: Hvp | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""GAM, Algorithm 1: replaces g by g + αρ H(θ_adv)ĝ(θ_adv), θ_adv = θ + ρ f/‖f‖, f = Hĝ.

    Descends L + αρ‖∇L(θ + sg(ε))‖, with ε = ρ f/‖f‖ constant for differentiation. To add it to
    SAM write ``combine(sam(0.05), gam(0.1, 1.0))``.

    This differs from the authors' code in:

    1. No constant ξ is added to ‖f‖; where f = 0 nothing is shifted.
    2. The Hessian-vector products are exact by default. Their code is Algorithm 2:
       :func:`gam_accelerated`.

    Args:
      rho: radius ρ ≥ 0 in parameter space, a number or a schedule.
      alpha: weight α ≥ 0 of R¹, a number or a schedule.
      hvp: how to multiply with the Hessian at θ_adv; None is :func:`flatreg.exact_hvp`.
      ascent_hvp: how to find f at θ; None is ``hvp``. ``finite_difference_hvp(0.01)`` saves one
        gradient, as f is used for its direction only.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; two gradients and two
      Hessian-vector products a step (about six gradients).

    Raises:
      ValueError: if ``rho`` or ``alpha`` is a negative Python number.
      TypeError: if ``hvp`` or ``ascent_hvp`` is no function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.gam(rho=0.5, alpha=0.5)
      >>> print(tx.update(w, tx.init(w), w, grad_fn=grad_fn)[0])  # w + αρ w/5
      [3.15 4.2 ]

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, CVPR 2023, Algorithm 1.
    """
    check_nonnegative(rho=rho, alpha=alpha)
    linearize = resolve_hvp(hvp)
    linearize_for_ascent = (
        linearize if ascent_hvp is None else resolve_hvp(ascent_hvp, "ascent_hvp")
    )

    def direction(
        grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar, alpha: Scalar
    ) -> Grads:
        _, hessian = linearize_for_ascent(grad_fn, params)
        worst = shift(params, hessian(unit(g)), rho)  # θ_adv = θ + ρ f/‖f‖,  f = Hĝ
        g_worst, hessian_worst = linearize(grad_fn, worst)
        penalty = hessian_worst(unit(g_worst))
        return mix((1, g), (alpha * rho, penalty))  # g + αρ H(θ_adv) ĝ(θ_adv)

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
) -> optax.GradientTransformationExtraArgs:
    r"""GAM, Algorithm 2: four gradients, no Hessian-vector product; contains SAM through g₁.

    With u[v] = T²v/‖Tv‖, it replaces g₀ by h₊ − γh₋^⊥, where

    .. code-block:: text

      g₁ = ∇L(θ + ρ′u[g₀])     h₀ = g₁ − g₀           θ₂ = θ + ρ u[h₀]
      g₂ = ∇L(θ₂)              g₃ = ∇L(θ₂ + ρ′u[g₂])
      h₊ = αg₁ + (1 − α)g₃     h₋ = βg₀ + (1 − β)g₂   h₋^⊥ = the part of h₋ orthogonal to h₊

    With α = 1 and γ = 0 it is SAM with ρ′. As h₀ is a difference of two gradients, both must be of
    the same examples: not for an oracle with ``ascent_fraction``.

    The paper's (ρ, ρ′, β, α, γ): CIFAR-100 ResNet (.2, .02, .5, .6, .03), the defaults here, and
    PyramidNet (.2, .04, .3, .5, .05); CIFAR-10 ResNet (.2, .03, .1, .1, .05) and PyramidNet
    (.2, .03, .1, .1, .03).

    This differs from the authors' code in:

    1. h₋ weighs g₀ by β, as in the paper; their code weighs it by 1: ``clean_weight=1.0``.
    2. ``scale`` covers all three shifts.

    Args:
      rho: radius ρ ≥ 0 of the ascent on the gradient norm, a number or a schedule.
      rho_prime: radius ρ′ ≥ 0 of the two SAM-like shifts, a number or a schedule.
      alpha: α ≥ 0, the weight of g₁ in h₊, a number or a schedule.
      beta: β ≥ 0, the weight of g₀ in h₋, a number or a schedule.
      gamma: γ ≥ 0, the weight of h₋^⊥, a number or a schedule.
      scale: T, a function ``params -> factors`` (one a weight or one a leaf), None for T = 1.
      clean_weight: the weight of g₀ in h₋, ≥ 0, a number or a schedule; None is β.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; four gradients a step.

    Raises:
      ValueError: if one of the numbers is negative.
      TypeError: if ``scale`` is no function.

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
    check_function("scale", scale, "a function params -> T")

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
        g1 = grad_fn(shift(params, g0, rho_prime, factors))  # ∇L(θ + ρ′ĝ₀)
        h0 = mix((1, g1), (-1, g0))
        worst = shift(params, h0, rho, factors)  # θ₂ = θ + ρĥ₀
        g2 = grad_fn(worst)
        g3 = grad_fn(shift(worst, g2, rho_prime, factors))  # ∇L(θ₂ + ρ′ĝ₂)
        plus = mix((alpha, g1), (1 - alpha, g3))  # h₊
        minus = mix((clean_weight, g0), (1 - beta, g2))  # h₋
        along = unit(plus)
        return mix((1, plus), (-gamma, minus), (gamma * inner(minus, along), along))  # h₊ − γh₋^⊥

    return from_direction(direction, **scalars)
