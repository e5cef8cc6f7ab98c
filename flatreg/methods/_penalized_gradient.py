"""Penalizing the gradient norm: L + λ‖∇L‖ₚ, by a finite difference or exactly.

Its gradient is g + λ H·∂‖g‖ₚ, which for p = 2 is g + λ H ĝ. With Hĝ ≈ [∇L(θ + rĝ) − g]/r and
λ = αr it becomes (1 − α) g + α ∇L(θ + rĝ): two gradients a step, and SAM at α = 1.

Zhao, Zhang and Hu, 'Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
Learning', ICML 2022, arXiv 2202.03599. The warm-ups for adaptive optimizers, of 'When Will
Gradient Regularization Be Harmful?', ICML 2024, arXiv 2406.09723, over T steps:

    r-warm-up     penalized_gradient(r=optax.linear_schedule(0.0, r, T), alpha=alpha)
    λ-warm-up     penalized_gradient(r=r, alpha=optax.linear_schedule(0.0, alpha, T))
    zero-warm-up  after(penalized_gradient(r=r, alpha=alpha), T)
"""

import math

import optax

from flatreg._core.checks import (
    check_function,
    check_nonnegative,
    checked_scale,
    is_number,
    is_scalar,
    static_args,
)
from flatreg._core.directions import from_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import mix, shift, unit
from flatreg.typing import GradFn, Grads, Hvp, Params, Scalar, ScalarOrSchedule, Scale


def penalized_gradient(
    r: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 0.8,
    *,
    scale: Scale | None = None,
    normalize_clean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""PGN by finite differences: replaces g by (1 − α) g + α ∇L(θ + r T²g/‖Tg‖).

    Descends L + λ‖T∇L‖₂ with λ = αr up to O(r), and (1 − α) L(θ) + α L(θ + sg(ε)) exactly, where
    the shift ε is constant for differentiation. ``alpha=1`` is SAM with ρ = r, ``alpha=0`` the
    plain gradient.

    With adaptive optimizers and a learning-rate warm-up the penalty can hurt; three warm-ups over
    T steps mend it: ``r=optax.linear_schedule(0.0, 0.1, T)`` (r-warm-up),
    ``alpha=optax.linear_schedule(0.0, 0.8, T)`` (λ-warm-up), or
    ``after(penalized_gradient(), T)`` (zero-warm-up).

    This differs from the authors' code in:

    1. The first term is the gradient g, as in the paper. Their code has the unit gradient ĝ there
       by default: ``normalize_clean=True``.
    2. The radius is r‖g‖/‖g‖, without a constant added to the denominator: a zero gradient is
       shifted by nothing.

    Args:
      r: length r ≥ 0 of the ascent step in parameter space, a number or a schedule. The paper has
        0.1 on CIFAR and 0.05 on ImageNet.
      alpha: balance α ≥ 0 (usually in [0, 1]), a number or a schedule; the penalty is λ = αr.
      scale: T, a function ``params -> factors`` (one a weight or one a leaf), None for T = 1.
      normalize_clean: whether the first term is (1 − α) ĝ, as in the authors' code.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; two gradients a step.

    Raises:
      ValueError: if ``r`` or ``alpha`` is a negative Python number.
      TypeError: if ``scale`` is no function or ``normalize_clean`` no Python bool.

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
    """
    check_nonnegative(r=r, alpha=alpha)
    check_function("scale", scale, "a function params -> T")
    if not isinstance(normalize_clean, bool):
        raise TypeError(
            f"normalize_clean must be True or False, got {normalize_clean!r}. "
            + static_args("normalize_clean")
        )

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, r: Scalar, alpha: Scalar) -> Grads:
        uphill = grad_fn(shift(params, g, r, checked_scale(scale, params)))
        clean = unit(g) if normalize_clean else g
        return mix((1 - alpha, clean), (alpha, uphill))  # (1 − α) g + α ∇L(θ + r T²g/‖Tg‖)

    return from_direction(direction, r=r, alpha=alpha)


def gradient_norm_penalty(
    penalty: ScalarOrSchedule = 0.1, *, ord: Scalar = 2, hvp: Hvp | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Exact PGN: descends L + λ‖∇L‖ₚ, replacing g by g + λ H·[sign(g)|g|^{p−1}/‖g‖ₚ^{p−1}].

    For p = 2 that is g + λHĝ. ``gradient_norm_penalty(λ, hvp=finite_difference_hvp(r))`` is
    ``penalized_gradient(r, λ/r)``.

    The penalty suits smooth activations (GELU, tanh); with ReLU, whose Hessian misses the kinks,
    it is often harmful (arXiv 2401.10809).

    There is no factor ½ in front of Hĝ (a common slip), as ∇‖g‖₂ = Hĝ.

    Args:
      penalty: λ ≥ 0, in units of length in parameter space, a number or a schedule.
      ord: p ≥ 1, a finite number or a 0-d array. sign(0) = 0, so dead coordinates stay out.
      hvp: how to multiply with the Hessian; None is :func:`flatreg.exact_hvp`.

    Returns:
      A transformation whose ``update`` takes ``params`` and ``grad_fn``; one gradient and one
      Hessian-vector product a step (about three gradients).

    Raises:
      ValueError: if ``penalty`` is a negative Python number, or ``ord`` one that is infinite or
        below 1.
      TypeError: if ``ord`` is no number or ``hvp`` no function.

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
    if not is_scalar(ord):
        raise TypeError(f"ord must be a number or a 0-d array, got {ord!r}: ord=2, say.")
    if is_number(ord) and not 1 <= ord < math.inf:
        raise ValueError(f"ord must be finite and at least 1, got {ord}: ord=2, say.")
    linearize = resolve_hvp(hvp)

    def direction(grad_fn: GradFn, params: Params, g: Grads, *, penalty: Scalar) -> Grads:
        _, hessian = linearize(grad_fn, params)
        return mix((1, g), (penalty, hessian(unit(g, ord))))  # g + λ H ∂‖g‖ₚ

    return from_direction(direction, penalty=penalty)
