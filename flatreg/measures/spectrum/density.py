"""The spectral density of the Hessian, by stochastic Lanczos quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.krylov import tridiagonalize
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, curvature_matrix
from flatreg.typing import Params, Scale


class Density(NamedTuple):
    """A spectral density, represented by one quadrature rule per probe.

    Attributes:
      nodes: the Ritz values, estimates of eigenvalues, shape (probes, steps).
      weights: the share of the eigenvalues at each node, shape (probes, steps). The weights of each
        probe sum to 1.
    """

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
    r"""The distribution of the eigenvalues of the Hessian, by stochastic Lanczos quadrature.

    Lanczos iteration from a random unit vector v, called a probe, gives Ritz values θᵢ and weights
    wᵢ, the squared first components of their eigenvectors. The quadrature Σᵢ wᵢ δ(λ − θᵢ) and the
    spectral measure of v agree in the first 2·``steps`` − 1 moments. The mean of the spectral
    measure over v is the density (1/n) Σᵢ δ(λ − λᵢ).

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the Hessian.
      key: the random key for the probes.
      probes: the number of random vectors. Additional probes improve the estimate more than
        additional steps do.
      steps: the number of Hessian-vector products per probe. It is capped at the number of
        weights.
      curvature: the matrix to measure. If None, the Hessian. To measure the Gauss–Newton matrix
        instead, pass the result of :func:`gauss_newton`. For a loss without forward-mode
        derivatives, pass ``functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)``.
      scale: ``params -> T`` with one factor per weight, to measure T·H·T.

    Returns:
      :class:`Density`. Pass it to :func:`density_on_grid` to get a curve.

    Raises:
      ValueError: if ``probes`` or ``steps`` is below 1.

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
    matrix = curvature_matrix(loss_fn, params, curvature, scale)
    if probes < 1 or steps < 1:
        raise ValueError(
            f"probes and steps must be at least 1, got {probes} and {steps}: for example, write "
            "probes=8, steps=64."
        )

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, restart_key = jax.random.split(key)
        start = jax.random.rademacher(start_key, (matrix.size,), matrix.dtype)
        krylov = tridiagonalize(matrix.matvec, start, min(steps, matrix.size), restart_key)
        nodes, vectors = krylov.eigh()
        return nodes, vectors[0] ** 2

    return Density(*jax.lax.map(probe, jax.random.split(key, probes)))


def density_on_grid(density: Density, grid: jax.Array, width: float) -> jax.Array:
    """The spectral density as a curve, in which each node is replaced by a Gaussian.

    Args:
      density: the result of :func:`spectral_density`.
      grid: the values of λ at which to evaluate the curve, shape (m,).
      width: the standard deviation of the Gaussians in units of λ, for example a hundredth of the
        difference between the largest and the smallest eigenvalue.

    Returns:
      The density at the values of ``grid``, shape (m,). Its integral over λ is 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> density = measures.Density(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]]))
      >>> grid = jnp.linspace(-1.0, 2.0, 301)
      >>> print(f"{jnp.sum(measures.density_on_grid(density, grid, 0.1)) * 0.01:.3f}")
      1.000
    """
    distance = (jnp.asarray(grid)[:, None, None] - density.nodes[None]) / width
    bumps = jnp.exp(-(distance**2) / 2) / (width * (2 * jnp.pi) ** 0.5)
    return jnp.mean(jnp.sum(density.weights[None] * bumps, axis=-1), axis=-1)
