"""Trace and diagonal of the Hessian, by Hutchinson's random signs or exactly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import matmul
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, Operator, operator, to_vector
from flatreg.measures.spectrum.eigenpairs import Eigenpairs
from flatreg.typing import Params, Scale


class Estimate(NamedTuple):
    """A mean over random draws and its standard error, which is zero where nothing is drawn."""

    value: Any
    standard_error: Any


def trace(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array | None = None,
    *,
    probes: int | None = 64,
    deflate: Eigenpairs | None = None,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Estimate:
    r"""tr H ≈ mean of vᵀHv over random signs v (Hutchinson), with its standard error.

    One product a probe, one after another. With 64 probes or more a t-interval of the standard
    error covers as it should; below 32 it does not. That error is ‖H‖_F√2 a probe at most, so a few
    large eigenvalues make most of it. ``deflate`` takes them out: tr H = Σλᵢ + tr PHP with P = 1 −
    VVᵀ holds for any orthonormal V, and probes estimate the rest alone.

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`.
      params: where the Hessian is taken.
      key: draws the probes.
      probes: how many, at least 2; None takes each unit vector once, which is exact and costs a
        product a weight.
      deflate: the outermost eigenpairs, ``top_eigenpairs(loss_fn, params, key, k=20)``, with the
        same ``curvature`` and ``scale``; on a trained network a few times less error.
      curvature: as in :func:`top_eigenpairs`, and so is ``scale``.
      scale: see there.

    Returns:
      :class:`Estimate` of two scalars.

    Raises:
      ValueError: if probes are drawn without a key, or fewer than two.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, -2.0, 3.0]) * w**2) / 2
      >>> print(*measures.trace(loss_fn, jnp.ones(3), jax.random.key(0)))
      2.0 0.0

    References:
      Hutchinson, `A Stochastic Estimator of the Trace of the Influence Matrix
      <https://doi.org/10.1080/03610919008812866>`_, 1990.

      Meyer, Musco, Musco and Woodruff, `Hutch++: Optimal Stochastic Trace Estimation
      <https://arxiv.org/abs/2010.09649>`_, 2021, on deflation.
    """
    matrix = operator(loss_fn, params, curvature, scale)
    if probes is None:
        return Estimate(jnp.sum(_exact_diagonal(matrix)), jnp.zeros((), matrix.dtype))
    if deflate is None:
        return _hutchinson(matrix, key, probes, matmul)
    vectors = jax.vmap(to_vector)(deflate.vectors)

    def beyond(v: jax.Array) -> jax.Array:
        return v - matmul(matmul(vectors, v), vectors)  # Pv

    rest = matrix._replace(matvec=lambda v: beyond(matrix.matvec(beyond(v))))
    value, error = _hutchinson(rest, key, probes, matmul)
    return Estimate(jnp.sum(deflate.values) + value, error)


def diagonal(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array | None = None,
    *,
    probes: int | None = 64,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Estimate:
    r"""diag H ≈ mean of v⊙Hv over random signs v, with its standard error.

    Args:
      loss_fn: as all others, see :func:`trace`; ``probes=None`` is exact here too.
      params: see there.
      key: see there.
      probes: see there.
      curvature: see there.
      scale: see there.

    Returns:
      :class:`Estimate` of two trees like the parameters.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: w[0] ** 2 * w[1]
      >>> print(measures.diagonal(loss_fn, jnp.array([1.0, 2.0]), probes=None).value)
      [4. 0.]

    References:
      Bekas, Kokiopoulou and Saad, `An Estimator for the Diagonal of a Matrix
      <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.
    """
    matrix = operator(loss_fn, params, curvature, scale)
    if probes is None:
        exact = matrix.to_tree(_exact_diagonal(matrix))
        return Estimate(exact, optax.tree.zeros_like(exact))
    return Estimate(*map(matrix.to_tree, _hutchinson(matrix, key, probes, jnp.multiply)))


def _exact_diagonal(matrix: Operator) -> jax.Array:
    def entry(i: jax.Array) -> Any:
        return matrix.matvec(jnp.zeros(matrix.size, matrix.dtype).at[i].set(1))[i]

    entries: jax.Array = jax.lax.map(entry, jnp.arange(matrix.size))
    return entries


def _hutchinson(
    matrix: Operator,
    key: jax.Array | None,
    probes: int,
    statistic: Callable[..., jax.Array],
) -> Estimate:
    """Mean and standard error of ``statistic(v, Hv)``, with one probe in memory (Welford)."""
    if key is None:
        raise ValueError("random probes need a key: pass jax.random.key(0), or probes=None.")
    if probes < 2:
        raise ValueError(f"probes must be at least 2, for a standard error, got {probes}.")

    def draw(key: jax.Array) -> jax.Array:
        v = jax.random.rademacher(key, (matrix.size,), matrix.dtype)
        return statistic(v, matrix.matvec(v))

    def add(carry: tuple[jax.Array, jax.Array], numbered: Any) -> tuple[Any, None]:
        (mean, squares), (count, key) = carry, numbered
        x = draw(key)
        new = mean + (x - mean) / count
        return (new, squares + (x - mean) * (x - new)), None

    zeros = jnp.zeros_like(jax.eval_shape(draw, key))
    numbered = jnp.arange(1, probes + 1), jax.random.split(key, probes)
    (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), numbered)
    return Estimate(mean, jnp.sqrt(squares / (probes - 1) / probes))
