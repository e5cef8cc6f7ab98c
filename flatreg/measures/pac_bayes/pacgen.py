"""The PACGen metric Ψ, which ranks solutions by curvature and by the sizes of their weights.

    Ψ = Σ log[(|θᵢ|+Nᵢ)·max(√(∇²ᵢᵢ+ρNᵢ), 1/Nᵢ)],    Nᵢ = γ|θᵢ| + ε

Ψ and its constants γ = ε = 0.1 are as stated in arXiv 1809.07402v1 (Wang, Keskar, Xiong and Socher,
2018). The constants are not re-derived here. The paper obtains Ψ from a PAC-Bayes bound for uniform
noise. The bound, the divergence and the optimal noise are derived in ``uniform_noise.py``. The step
from the bound to Ψ is not derived: Ψ uses τᵢ = |θᵢ| + Nᵢ, whereas in a bound τ must not depend on
the data. Therefore Ψ ranks solutions, but it is not a bound.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import is_number
from flatreg._core.tree import total
from flatreg.measures.checks import broadcast_like, check_numbers
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params, Scalar


class Pacgen(NamedTuple):
    r"""The PACGen metric Ψ and its parts. A smaller Ψ is meant to indicate better generalization.

    Attributes:
      value: Ψ ≥ 0, the sum of ``terms``.
      terms: the contribution of each weight, a tree like the parameters in at least float32.
      curvature: Σ log max(Nᵢ√(∇²ᵢᵢ+ρNᵢ), 1), the part of Ψ that depends on the curvature. The rest,
        Σ log(1 + \|θᵢ\|/Nᵢ), depends only on the sizes of the weights.
      active: the fraction of the weights with √(∇²ᵢᵢ+ρNᵢ) > 1/Nᵢ, in [0, 1].
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
    r"""The PACGen metric Ψ = Σ log[(\|θᵢ\|+Nᵢ)·max(√(∇²ᵢᵢ+ρNᵢ), 1/Nᵢ)] with Nᵢ = γ\|θᵢ\| + ε.

    Ψ and γ = ε = 0.1 are as stated in arXiv 1809.07402v1. The constants are not re-derived here. A
    negative ∇²ᵢᵢ+ρNᵢ is replaced by 0. Ψ ranks solutions, but it does not bound the generalization
    error.

    Check ``active`` before you compare two networks. With γ = ε = 0.1, the curvature at a weight
    near 0 contributes to Ψ only if it exceeds 100. If no weight is active, Ψ depends only on the
    sizes of the weights.

    Args:
      params: θ, the trained weights.
      diagonal: the diagonal of the Hessian ∇²L at θ, a tree like ``params``, such as
        ``measures.diagonal(...).value``.
      hessian_lipschitz: ρ ≥ 0, the Lipschitz constant of the Hessian, such as
        ``measures.hessian_lipschitz(...).value``.
      gamma: γ ≥ 0, the part of Nᵢ that is proportional to the weight.
      epsilon: ε > 0, the part of Nᵢ that is the same for all weights.

    Returns:
      :class:`Pacgen`.

    Raises:
      TypeError: if ρ, γ or ε is not a number or 0-d array.
      ValueError: if ``diagonal`` does not have the shapes of ``params``, or ρ, γ or ε is out of
        range.

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
    check_numbers(hessian_lipschitz=rho, gamma=gamma, epsilon=epsilon)
    if is_number(epsilon) and epsilon == 0:
        raise ValueError(
            "epsilon must be positive, because Nᵢ = epsilon for a zero weight: write epsilon=0.1."
        )
    params = in_float32_or_wider(params)
    sizes = jax.tree.map(lambda w: gamma * jnp.abs(w) + epsilon, params)
    diagonal = broadcast_like("diagonal", diagonal, params)
    # (|θ|+N) max(√h, 1/N) = (1 + |θ|/N) max(N√h, 1). The right side never becomes infinite.
    bends = jax.tree.map(lambda h, n: (h + rho * n) * n**2, diagonal, sizes)
    of_size = jax.tree.map(lambda w, n: jnp.log1p(jnp.abs(w) / n), params, sizes)
    of_bend = jax.tree.map(lambda b: jnp.log(jnp.maximum(b, 1)) / 2, bends)
    terms, curvature = jax.tree.map(jnp.add, of_size, of_bend), total(of_bend)
    # Counted in floating point, because int32 overflows above 2³¹ weights.
    active = total(jax.tree.map(lambda b: (b > 1).astype(b.dtype), bends))
    return Pacgen(total(terms), terms, curvature, active / float(optax.tree.size(bends)))
