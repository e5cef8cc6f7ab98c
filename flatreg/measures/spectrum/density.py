"""How the Hessian's eigenvalues are distributed, by stochastic Lanczos quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.krylov import tridiagonalize
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, operator
from flatreg.typing import Params, Scale


class Density(NamedTuple):
    """A spectral density: for each probe, ``nodes`` λ and their ``weights``, (probes, steps)."""

    nodes: jax.Array
    weights: jax.Array


def spectral_density(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    *,
    probes: int = 8,
    steps: int = 64,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Density:
    r"""The distribution of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    For a random unit vector v, Σᵢ wᵢ δ(λ − θᵢ), with the Ritz values θᵢ and the squared first
    components wᵢ of their vectors, has the first 2·``steps`` − 1 moments of v's spectral measure,
    and the mean of that measure over v is the density (1/n) Σᵢ δ(λ − λᵢ).

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`.
      params: where the Hessian is taken.
      key: draws the probes.
      probes: random vectors; more of them say more than more steps.
      steps: products a probe, at most the number of weights, to which it is cut.
      curvature: as in :func:`top_eigenpairs`, and so is ``scale``.
      scale: see there.

    Returns:
      :class:`Density`; :func:`density_on_grid` draws it. The weights of a probe sum to 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 1.0, 3.0]) * w**2) / 2
      >>> density = measures.spectral_density(loss_fn, jnp.ones(3), jax.random.key(0), probes=2)
      >>> mean = jnp.sum(density.nodes * density.weights, axis=1)
      >>> print(mean.round(3))  # trace / n, exactly: random signs on a diagonal Hessian
      [1.667 1.667]

    References:
      Ghorbani, Krishnan and Xiao, `An Investigation into Neural Net Optimization via Hessian
      Eigenvalue Density <https://arxiv.org/abs/1901.10159>`_, ICML 2019.
    """
    matrix = operator(loss_fn, params, curvature, scale)
    if probes < 1 or steps < 1:
        raise ValueError(f"probes and steps must be at least 1, got {probes} and {steps}.")

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, other_key = jax.random.split(key)
        start = jax.random.rademacher(start_key, (matrix.size,), matrix.dtype)
        krylov = tridiagonalize(matrix.matvec, start, min(steps, matrix.size), other_key)
        nodes, vectors = krylov.eigh()
        return nodes, vectors[0] ** 2

    return Density(*jax.lax.map(probe, jax.random.split(key, probes)))


def density_on_grid(density: Density, grid: jax.Array, width: float) -> jax.Array:
    """The density at ``grid``, each node a Gaussian of standard deviation ``width``.

    Args:
      density: what :func:`spectral_density` returned.
      grid: values of λ, shape (m,).
      width: of a Gaussian, in units of λ; a hundredth of the spectrum's width, say.

    Returns:
      The density, shape (m,), which integrates to 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> density = measures.Density(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]]))
      >>> grid = jnp.linspace(-1.0, 2.0, 301)
      >>> print(f"{jnp.sum(measures.density_on_grid(density, grid, 0.1)) * 0.01:.3f}")
      1.000
    """
    distance = (jnp.asarray(grid)[:, None, None] - density.nodes) / width
    bumps = jnp.exp(-(distance**2) / 2) / (width * (2 * jnp.pi) ** 0.5)
    return jnp.mean(jnp.sum(density.weights * bumps, axis=-1), axis=-1)
