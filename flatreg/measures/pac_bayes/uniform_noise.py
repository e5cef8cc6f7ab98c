r"""A PAC-Bayes bound for uniform weight noise whose level is adapted to the curvature.

For independent noise uᵢ ~ U(−σᵢ, σᵢ) with σᵢ ≤ κᵢ, and a Hessian with the Lipschitz constant ρ over
the box |δᵢ| ≤ κᵢ:

    E_u L̂(θ+u) ≤ L̂ + Σ σᵢ²(∇²ᵢᵢ/6 + ρ‖κ‖/18)     because E uᵢ² = σᵢ²/3 and ‖u‖³ ≤ ‖κ‖‖u‖²
    KL(U(θ−σ, θ+σ) ‖ U(−τ, τ)) = Σ log(τᵢ/σᵢ)      if |θᵢ| + σᵢ ≤ τᵢ
    bound + c KL is smallest at σᵢ* = min(√(c/(∇²ᵢᵢ/3 + ρ‖κ‖/9)), κᵢ)

The setting is that of Wang, Keskar, Xiong and Socher, 'Identifying Generalization Properties in
Neural Networks', arXiv 1809.07402v1, which assumes that the loss is locally convex. The three lines
above are derived here. They do not need convexity and hold for any loss, at a minimum or elsewhere,
because the odd terms of the expansion vanish by symmetry.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import inner, norm, total
from flatreg.measures.checks import broadcast_like, check_numbers
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params, Scalar


def optimal_noise(diagonal: Params, rho: Scalar, kappa: Params, c: Scalar) -> Params:
    r"""The noise level per weight that minimizes the bound: more noise where the loss is flatter.

    σᵢ* = min(√(c/(∇²ᵢᵢ/3 + ρ‖κ‖/9)), κᵢ), and κᵢ where ∇²ᵢᵢ/3 + ρ‖κ‖/9 ≤ 0. This minimizes the
    objective :func:`expected_loss_bound` + c·:func:`uniform_kl` over σᵢ ≤ κᵢ. The formula is
    derived here.

    Args:
      diagonal: the diagonal of the Hessian ∇²L at θ, a tree, such as
        ``measures.diagonal(...).value``.
      rho: ρ ≥ 0, the Lipschitz constant of the Hessian, such as
        ``measures.hessian_lipschitz(...).value``. If 0, the loss is treated as a quadratic.
      kappa: κᵢ, the largest noise per weight: a tree like ``diagonal``, or one number for all.
      c: the multiplier of the KL divergence in this objective, in units of the loss, at least 0.

    Returns:
      σ*, a tree like ``diagonal``.

    Raises:
      TypeError: if ``rho`` or ``c`` is not a number or 0-d array.
      ValueError: if ``kappa`` does not have the shapes of ``diagonal``, or ρ or c is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.optimal_noise(jnp.array([0.0, 3.0, 300.0]), 0.0, 0.5, c=0.01))
      [0.5  0.1  0.01]
    """
    check_numbers(rho=rho, c=c)
    diagonal = in_float32_or_wider(diagonal)
    kappa = broadcast_like("kappa", kappa, diagonal)
    cubic = rho * norm(kappa) / 9

    def sigma(h: jax.Array, most: jax.Array) -> jax.Array:
        bend = h / 3 + cubic
        inside = bend * most**2 > c  # √(c/bend) < κ
        return jnp.where(inside, jnp.sqrt(c / jnp.where(inside, bend, 1)), most).astype(h.dtype)

    return jax.tree.map(sigma, diagonal, kappa)


def expected_loss_bound(
    loss: Scalar, sigma: Params, diagonal: Params, rho: Scalar, kappa: Params
) -> jax.Array:
    r"""An upper bound on the expected loss under uniform noise on the weights.

    E L̂(θ+u) ≤ L̂ + Σσᵢ²(∇²ᵢᵢ/6 + ρ‖κ‖/18) for uᵢ ~ U(−σᵢ, σᵢ). On quadratics, where ρ = 0, both
    sides are equal. The bound is derived here.

    Args:
      loss: L̂ at θ, the training loss.
      sigma: σᵢ ≤ κᵢ, the noise per weight: a tree like ``diagonal``, or one number for all.
      diagonal: the diagonal of the Hessian ∇²L at θ, a tree, such as
        ``measures.diagonal(...).value``.
      rho: ρ ≥ 0, the Lipschitz constant of the Hessian. :func:`hessian_lipschitz` gives a lower
        bound on ρ. With that value, the result is an estimate, not a bound.
      kappa: κᵢ, the largest noise per weight: a tree like ``diagonal``, or one number for all.

    Returns:
      A scalar.

    Raises:
      TypeError: if ``rho`` is not a number or 0-d array.
      ValueError: if the trees have different shapes, ρ is negative, or some σᵢ > κᵢ (not checked
        for traced values).

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.expected_loss_bound(1.0, 0.5, jnp.array([6.0, 18.0]), 0.0, 0.5))
      2.0
    """
    check_numbers(rho=rho)
    diagonal = in_float32_or_wider(diagonal)
    sigma = broadcast_like("sigma", sigma, diagonal)
    kappa = broadcast_like("kappa", kappa, diagonal)
    excess = jax.tree.map(lambda s, k: jnp.maximum(s - k * (1 + 1e-6), 0), sigma, kappa)
    above = total(excess)
    if not isinstance(above, jax.core.Tracer) and above > 0:
        raise ValueError(
            "some σᵢ are larger than κᵢ: write sigma=measures.optimal_noise(diagonal, rho, kappa, "
            "c), or increase kappa."
        )
    cubic = rho * norm(kappa) / 18
    bends = jax.tree.map(lambda h: h / 6 + cubic, diagonal)
    return loss + inner(jax.tree.map(jnp.square, sigma), bends)


def uniform_kl(params: Params, sigma: Params, tau: Params) -> jax.Array:
    r"""The KL divergence of uniform noise around the weights from a uniform prior around zero.

    KL(U(θ−σ, θ+σ) ‖ U(−τ, τ)) = Σ log(τᵢ/σᵢ), infinite if \|θᵢ\| + σᵢ > τᵢ for some i.

    Args:
      params: θ, the center of the posterior.
      sigma: σᵢ > 0, the noise per weight: a tree like ``params``, or one number for all.
      tau: τᵢ, the half-width of the prior: a tree like ``params``, or one number for all. For the
        bound to be valid, τ must be chosen before seeing the data.

    Returns:
      A scalar.

    Raises:
      ValueError: if the trees have different shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> kl = measures.uniform_kl(jnp.array([0.5, -0.8]), sigma=0.1, tau=1.0)
      >>> print(f"{jnp.exp(kl):.1f}")
      100.0
    """
    params = in_float32_or_wider(params)

    def divergence(w: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        inside = jnp.abs(w) + s <= t * (1 + 4 * float(np.finfo(t.dtype).eps))
        return jnp.where(inside, jnp.log(t / s), jnp.inf)

    sigma, tau = broadcast_like("sigma", sigma, params), broadcast_like("tau", tau, params)
    return total(jax.tree.map(divergence, params, sigma, tau))
