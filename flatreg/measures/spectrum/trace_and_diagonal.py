"""The trace and the diagonal of the Hessian, by Hutchinson's estimator or exactly.

For a vector v of independent random signs, E[vᵀHv] = tr H and E[v⊙Hv] = diag H.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul
from flatreg.measures.dataset import LossFn
from flatreg.measures.estimate import Estimate
from flatreg.measures.spectrum.curvature import (
    Curvature,
    CurvatureMatrix,
    curvature_matrix,
    to_vector,
)
from flatreg.measures.spectrum.eigenpairs import Eigenpairs
from flatreg.typing import Params, Scale


def trace(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array | None = None,
    *,
    probes: int | None = 64,
    deflate: Eigenpairs | int | None = None,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Estimate:
    r"""The trace of the Hessian with its standard error, by Hutchinson's estimator.

    tr H is estimated by the mean of vᵀHv over vectors v of random signs, called probes. Each probe
    costs one Hessian-vector product, and the probes are processed one after another. The standard
    deviation of one probe is at most ‖H‖_F√2, so most of the error comes from a few large
    eigenvalues. ``deflate`` removes them: with P = 1 − VVᵀ, the equation
    tr H = Σvᵢᵀ H vᵢ + tr PHP holds for any orthonormal V, so only tr PHP needs to be estimated.

    A t-interval computed from the standard error has the correct coverage with 64 or more probes,
    but not with fewer than 32.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the Hessian.
      key: the random key for the probes. It is not needed if ``probes`` is None.
      probes: the number of random vectors, at least 2. If None, every standard basis vector is used
        once, which is exact and costs one product per weight.
      deflate: the space V that is removed from the estimate. With a number m, it is the Krylov
        space of m Lanczos steps, which cost one product each and keep m vectors in memory. It
        contains the outermost eigenvectors approximately, which is enough. With eigenpairs, such as
        ``top_eigenpairs(loss_fn, params, key, k=20)``, computed with the same ``curvature`` and
        ``scale``, it is the space of these. On a trained network, both reduce the error
        several-fold. If the eigenpairs are not needed for anything else, a number costs less.
      curvature: the matrix to measure. If None, the Hessian. To measure the Gauss–Newton matrix
        instead, pass the result of :func:`gauss_newton`. For a loss without forward-mode
        derivatives, pass ``functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)``.
      scale: ``params -> T`` with one factor per weight, for the trace of T·H·T.

    Returns:
      :class:`Estimate` of a scalar. If ``probes`` is None, its standard error is zero.

    Raises:
      ValueError: if random probes are requested without a key, or if fewer than two are requested;
        if ``deflate`` is a number that is not between 1 and the number of weights.
      TypeError: if ``deflate`` is neither eigenpairs nor a number that is fixed under ``jit``.

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
    matrix = curvature_matrix(loss_fn, params, curvature, scale)
    if probes is None:
        return Estimate(jnp.sum(_exact_diagonal(matrix)), jnp.zeros((), matrix.dtype))
    if deflate is None:
        return _mean_over_probes(matrix, key, probes, matmul)
    if isinstance(deflate, Eigenpairs):
        quotients, vectors = deflate.values, jax.vmap(to_vector)(deflate.vectors)
    else:
        key, start_key, restart_key = jax.random.split(_checked_key(key), 3)
        start = jax.random.normal(start_key, (matrix.size,), matrix.dtype)
        krylov = tridiagonalize(matrix.matvec, start, _checked_steps(deflate, matrix), restart_key)
        quotients, vectors = krylov.diagonal, krylov.basis

    def project(v: jax.Array) -> jax.Array:
        return v - matmul(matmul(vectors, v), vectors)  # Pv

    rest = matrix._replace(matvec=lambda v: project(matrix.matvec(project(v))))  # PHP
    value, error = _mean_over_probes(rest, key, probes, matmul)
    return Estimate(jnp.sum(quotients) + value, error)


def diagonal(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array | None = None,
    *,
    probes: int | None = 64,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Estimate:
    r"""The diagonal of the Hessian with its standard error, estimated with random signs.

    diag H is estimated by the mean of v⊙Hv over vectors v of random signs, called probes. Each
    probe costs one Hessian-vector product.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the Hessian.
      key: the random key for the probes. It is not needed if ``probes`` is None.
      probes: the number of random vectors, at least 2. None computes the diagonal exactly, with one
        Hessian-vector product per weight.
      curvature: the matrix to measure, such as the result of :func:`gauss_newton`, as for
        :func:`trace`. If None, the Hessian.
      scale: ``params -> T`` with one factor per weight, for the diagonal of T·H·T.

    Returns:
      :class:`Estimate` of a tree like the parameters. If ``probes`` is None, its standard error is
      zero.

    Raises:
      ValueError: if random probes are requested without a key, or if fewer than two are requested.

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
    matrix = curvature_matrix(loss_fn, params, curvature, scale)
    if probes is None:
        exact = matrix.to_tree(_exact_diagonal(matrix))
        return Estimate(exact, optax.tree.zeros_like(exact))
    return Estimate(*map(matrix.to_tree, _mean_over_probes(matrix, key, probes, jnp.multiply)))


def _checked_key(key: jax.Array | None) -> jax.Array:
    if key is None:
        raise ValueError(
            "random probes need a key: pass jax.random.key(0), or probes=None for the exact value."
        )
    return key


def _checked_steps(deflate: int, matrix: CurvatureMatrix) -> int:
    """The number of Lanczos steps, at most the number of weights."""
    if not isinstance(deflate, int | np.integer):
        raise TypeError(
            f"deflate must be Eigenpairs, a number of Lanczos steps, or None, got {deflate!r}. "
            "Under jit, fix the number: jax.jit(functools.partial(measures.trace, deflate=60))."
        )
    if not 1 <= deflate <= matrix.size:
        raise ValueError(
            f"deflate must be between 1 and the number of weights, {matrix.size}, got {deflate}: "
            f"for example, write deflate={min(60, matrix.size)}."
        )
    return int(deflate)


def _exact_diagonal(matrix: CurvatureMatrix) -> jax.Array:
    def entry(i: jax.Array) -> jax.Array:
        return matrix.matvec(jnp.zeros(matrix.size, matrix.dtype).at[i].set(1))[i]

    entries: jax.Array = jax.lax.map(entry, jnp.arange(matrix.size))
    return entries


Statistic: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of a probe v and the product Hv."""


class _ProbeMean(NamedTuple):
    """Welford's running mean and sum of squared deviations, with only one probe in memory."""

    mean: jax.Array
    squares: jax.Array

    def add(self, x: jax.Array, count: jax.Array) -> "_ProbeMean":
        """Includes x, the ``count``-th number."""
        mean = self.mean + (x - self.mean) / count
        return _ProbeMean(mean, self.squares + (x - self.mean) * (x - mean))


def _mean_over_probes(
    matrix: CurvatureMatrix, key: jax.Array | None, probes: int, statistic: Statistic
) -> Estimate:
    """The mean and standard error of ``statistic(v, Hv)`` over vectors v of random signs."""
    key = _checked_key(key)
    if probes < 2:
        raise ValueError(
            f"probes must be at least 2 to give a standard error, got {probes}: for example, write "
            "probes=64, or probes=None for the exact value."
        )

    def draw(key: jax.Array) -> jax.Array:
        v = jax.random.rademacher(key, (matrix.size,), matrix.dtype)
        return statistic(v, matrix.matvec(v))

    def add(carry: _ProbeMean, numbered_key: tuple[jax.Array, Any]) -> tuple[_ProbeMean, None]:
        count, key = numbered_key
        return carry.add(draw(key), count), None

    zeros = jnp.zeros_like(jax.eval_shape(draw, key))
    numbers = jnp.arange(1, probes + 1, dtype=zeros.dtype)
    numbered_keys = numbers, jax.random.split(key, probes)
    total, _ = jax.lax.scan(add, _ProbeMean(zeros, zeros), numbered_keys)
    return Estimate(total.mean, jnp.sqrt(total.squares / (probes - 1) / probes))
