"""PACGen: curvature in a PAC-Bayes bound, with as much noise on a weight as its curvature bears.

For noise uᵢ ~ U(−σᵢ, σᵢ), σᵢ ≤ κᵢ, and a Hessian with Lipschitz constant ρ over the box |δᵢ| ≤ κᵢ

    E_u L̂(θ+u) ≤ L̂ + Σ σᵢ²(∇²ᵢᵢ/6 + ρ‖κ‖/18)          for E uᵢ² = σᵢ²/3 and ‖u‖³ ≤ ‖κ‖‖u‖²
    KL(U(θ−σ, θ+σ) ‖ U(−τ, τ)) = Σ log(τᵢ/σᵢ)           for |θᵢ| + σᵢ ≤ τᵢ
    bound + c KL is smallest at σᵢ* = min(√(c/(∇²ᵢᵢ/3 + ρ‖κ‖/9)), κᵢ)

The setting and Ψ are the paper's, Ψ from memory. The three lines are derived here, for any loss, at
a minimum or not: the odd terms vanish by symmetry; the paper assumes local convexity. Uncertain is
how it passes to Ψ, with τᵢ = |θᵢ| + Nᵢ, from a bound whose τ must not depend on the data: Ψ ranks
solutions and bounds nothing. Wang, Keskar, Xiong and Socher, 2018, arXiv 1809.07402.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg._core.checks import check_nonnegative, is_number, is_scalar
from flatreg._core.tree import inner, norm, total
from flatreg.measures.spectrum.curvature import widened
from flatreg.typing import Params, Scalar


class Pacgen(NamedTuple):
    r"""The metric Ψ, smaller for what should generalize better, and what it is made of.

    Attributes:
      value: Ψ = Σ terms ≥ 0.
      terms: of each weight, a tree like the parameters in at least float32.
      curvature: the part Σ log max(Nᵢ√(∇²ᵢᵢ+ρNᵢ), 1) of Ψ; the rest, Σ log(1 + \|θᵢ\|/Nᵢ), knows
        the sizes of the weights alone.
      active: the fraction of the weights where √(∇²ᵢᵢ+ρNᵢ) > 1/Nᵢ, in [0, 1].
    """

    value: jax.Array
    terms: Params
    curvature: jax.Array
    active: jax.Array


def pacgen(
    params: Params,
    diagonal: Params,
    hessian_lipschitz: Scalar,
    *,
    gamma: Scalar = 0.1,
    epsilon: Scalar = 0.1,
) -> Pacgen:
    r"""Ψ = Σ log[(\|θᵢ\|+Nᵢ)·max(√(∇²ᵢᵢ+ρNᵢ), 1/Nᵢ)] with Nᵢ = γ\|θᵢ\| + ε: the PACGen metric.

    Negative ∇²ᵢᵢ+ρNᵢ counts as 0. Look at ``active`` before comparing two networks: with γ = ε =
    0.1, curvature counts for a weight near 0 only above 100, and where none is active Ψ is a
    function of the sizes of the weights. Ψ and γ = ε = 0.1 are the paper's, from memory.

    Args:
      params: θ.
      diagonal: diag ∇²L at θ: ``measures.diagonal(...).value``, a tree like ``params``.
      hessian_lipschitz: ρ ≥ 0: ``measures.hessian_lipschitz(...).value``.
      gamma: γ ≥ 0, the neighborhood in proportion to the weight.
      epsilon: ε > 0, the rest of it.

    Raises:
      ValueError: if ``diagonal`` is not like ``params``, or ρ, γ or ε out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> w = jnp.array([0.0, 9.0])  # N = 0.1, 1
      >>> result = measures.pacgen(w, jnp.array([1.0, 4.0]), 0.0)
      >>> print(jnp.exp(result.terms), result.active)  # 0.1 / 0.1 and 10 √4
      [ 1. 20.] 0.5

    References:
      Wang et al., `Identifying Generalization Properties in Neural Networks
      <https://arxiv.org/abs/1809.07402>`_, 2018.
    """
    rho = hessian_lipschitz
    _check_scalars(hessian_lipschitz=rho, gamma=gamma, epsilon=epsilon)
    if is_number(epsilon) and epsilon == 0:
        raise ValueError("epsilon must be positive, the Nᵢ of a weight of 0: epsilon=0.1, say.")
    params = widened(params)
    sizes = jax.tree.map(lambda w: gamma * jnp.abs(w) + epsilon, params)
    diagonal = _like("diagonal", diagonal, params)
    # (|θ|+N) max(√h, 1/N) = (1 + |θ|/N) max(N√h, 1), where nothing is infinite.
    bends = jax.tree.map(lambda h, n: (h + rho * n) * n**2, diagonal, sizes)
    of_size = jax.tree.map(lambda w, n: jnp.log1p(jnp.abs(w) / n), params, sizes)
    of_bend = jax.tree.map(lambda b: jnp.log(jnp.maximum(b, 1)) / 2, bends)
    terms, curvature = jax.tree.map(jnp.add, of_size, of_bend), total(of_bend)
    active = total(jax.tree.map(lambda b: (b > 1).astype(b.dtype), bends))  # not int32
    return Pacgen(total(terms), terms, curvature, active / float(optax.tree.size(bends)))


def optimal_noise(diagonal: Params, rho: Scalar, kappa: Params, c: Scalar) -> Params:
    r"""σᵢ* = min(√(c/(∇²ᵢᵢ/3 + ρ‖κ‖/9)), κᵢ): more noise where the loss is flatter.

    Minimizes :func:`expected_loss_bound` + c·:func:`uniform_kl` over σᵢ ≤ κᵢ, so c is the
    multiplier of the KL; derived here, as is κᵢ where ∇²ᵢᵢ/3 + ρ‖κ‖/9 ≤ 0.

    Args:
      diagonal: diag ∇²L, a tree.
      rho: ρ ≥ 0, see :func:`hessian_lipschitz`; 0 takes the loss for a quadratic.
      kappa: κᵢ, the most noise: a tree like ``diagonal``, or one number for all.
      c: ≥ 0, what a unit of KL is worth in units of the loss.

    Returns:
      σ*, a tree like ``diagonal``.

    Raises:
      ValueError: if ``kappa`` is not like ``diagonal``, or ρ or c is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.optimal_noise(jnp.array([0.0, 3.0, 300.0]), 0.0, 0.5, c=0.01))
      [0.5  0.1  0.01]
    """
    _check_scalars(rho=rho, c=c)
    diagonal = widened(diagonal)
    kappa = _like("kappa", kappa, diagonal)
    cubic = rho * norm(kappa) / 9

    def size(h: jax.Array, most: jax.Array) -> jax.Array:
        bend = h / 3 + cubic
        inside = bend * most**2 > c  # √(c/bend) < κ
        return jnp.where(inside, jnp.sqrt(c / jnp.where(inside, bend, 1)), most).astype(h.dtype)

    return jax.tree.map(size, diagonal, kappa)


def expected_loss_bound(
    loss: Scalar, sigma: Params, diagonal: Params, rho: Scalar, kappa: Params
) -> jax.Array:
    r"""L̂ + Σσᵢ²(∇²ᵢᵢ/6 + ρ‖κ‖/18) ≥ E L̂(θ+u), uᵢ ~ U(−σᵢ, σᵢ); equal on quadratics with ρ = 0.

    Args:
      loss: L̂ at θ, the training loss.
      sigma: σᵢ ≤ κᵢ, a tree like ``diagonal``, or one number for all.
      diagonal: diag ∇²L at θ.
      rho: ρ; from below, as :func:`hessian_lipschitz` finds it, this is an estimate.
      kappa: as in :func:`optimal_noise`.

    Raises:
      ValueError: if the trees do not match, ρ is negative, or some σᵢ > κᵢ, where not traced.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.expected_loss_bound(1.0, 0.5, jnp.array([6.0, 18.0]), 0.0, 0.5))
      2.0
    """
    _check_scalars(rho=rho)
    diagonal = widened(diagonal)
    sigma, kappa = _like("sigma", sigma, diagonal), _like("kappa", kappa, diagonal)
    above = total(jax.tree.map(lambda s, k: s > k * (1 + 1e-6), sigma, kappa))
    if not isinstance(above, jax.core.Tracer) and above > 0:
        raise ValueError(
            "some σᵢ are above κᵢ: take sigma=optimal_noise(diagonal, rho, kappa, c), or more κ."
        )
    cubic = rho * norm(kappa) / 18
    bends = jax.tree.map(lambda h: h / 6 + cubic, diagonal)
    return loss + inner(jax.tree.map(jnp.square, sigma), bends)


def uniform_kl(params: Params, sigma: Params, tau: Params) -> jax.Array:
    r"""KL(U(θ−σ, θ+σ) ‖ U(−τ, τ)) = Σ log(τᵢ/σᵢ), infinite where \|θᵢ\| + σᵢ > τᵢ.

    Args:
      params: θ, the centre of the posterior.
      sigma: σᵢ > 0, a tree like ``params``, or one number for all.
      tau: τᵢ, likewise. In a bound it must be chosen before the data are seen.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> kl = measures.uniform_kl(jnp.array([0.5, -0.8]), sigma=0.1, tau=1.0)
      >>> print(f"{jnp.exp(kl):.1f}")
      100.0
    """
    params = widened(params)

    def divergence(w: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        inside = jnp.abs(w) + s <= t * (1 + 4 * float(np.finfo(t.dtype).eps))
        return jnp.where(inside, jnp.log(t / s), jnp.inf)

    sigma, tau = _like("sigma", sigma, params), _like("tau", tau, params)
    return total(jax.tree.map(divergence, params, sigma, tau))


def _like(name: str, value: Params, tree: Params) -> Params:
    """A tree like the other, of one number or of leaves that broadcast to its leaves."""
    if is_scalar(value):
        value = jax.tree.map(lambda x: jnp.asarray(value, x.dtype), tree)
    value = widened(value)
    try:
        return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), value, tree)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{name} must be one number or a tree of the shapes {jax.tree.map(jnp.shape, tree)}, "
            f"got {jax.tree.map(jnp.shape, value)}: of a measure's result, pass its .value."
        ) from error


def _check_scalars(**scalars: Any) -> None:
    """Each is a scalar ≥ 0."""
    for name, value in scalars.items():
        if not is_scalar(value):
            raise TypeError(f"{name} must be one number, got {value!r}: pass a result's .value.")
    check_nonnegative(**scalars)
