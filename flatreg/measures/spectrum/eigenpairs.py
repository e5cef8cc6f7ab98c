"""The largest and smallest eigenvalues of the Hessian, by Lanczos iteration, with residuals."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, norm
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, curvature_matrix, to_vector
from flatreg.typing import Grads, Params, Scale

TOLERANCE = 1e-3  # the largest converged residual, relative to the largest |λ|

Which: TypeAlias = Literal["LA", "SA", "LM"]
"""Which eigenvalues to find: largest, smallest, or largest in magnitude (as in ARPACK)."""

ORDERS: dict[Which, Callable[[jax.Array], jax.Array]] = {
    "LA": lambda values: -values,
    "SA": lambda values: values,
    "LM": lambda values: -jnp.abs(values),
}


class Eigenpairs(NamedTuple):
    r"""The k requested eigenpairs, in the order of ``which``.

    Attributes:
      values: the eigenvalues λᵢ, shape (k,).
      vectors: the unit eigenvectors vᵢ, a tree like the parameters with a leading axis k.
      residuals: ‖Hvᵢ − λᵢvᵢ‖, shape (k,), each computed with one additional product. H has an
        eigenvalue within this distance of λᵢ.
      converged: whether each residual is at most 1e-3 times the largest \|λ\|, shape (k,).
    """

    values: jax.Array
    vectors: Grads
    residuals: jax.Array
    converged: jax.Array


def top_eigenpairs(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    k: int = 1,
    *,
    which: Which = "LA",
    steps: int | None = None,
    start: Grads | None = None,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Eigenpairs:
    r"""The outermost eigenvalues and eigenvectors of the Hessian, by Lanczos iteration.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the Hessian.
      key: the random key for the start vector.
      k: the number of eigenpairs, at most the number of weights.
      which: ``"LA"`` for the largest eigenvalues, ``"SA"`` for the smallest, ``"LM"`` for the
        largest in magnitude.
      steps: the number of Lanczos steps. Each step costs one Hessian-vector product and keeps one
        more vector in memory. The residuals cost another k products. If None, max(4k, 20), or the
        number of weights if that is smaller. Eigenvalues inside the spectrum or close to each other
        need more steps; check ``converged``.
      start: the start vector, a tree like ``params``, or the ``vectors`` of an earlier result,
        whose sum is then the start vector. The vectors found at nearby parameters save steps. If
        None, the start vector is random.
      curvature: the matrix to measure. If None, the Hessian. To measure the Gauss–Newton matrix
        instead, pass the result of :func:`gauss_newton`.
      scale: ``params -> T`` with one factor per weight, for the eigenvalues of T·H·T.

    Returns:
      :class:`Eigenpairs`.

    Raises:
      ValueError: if k or ``steps`` exceeds the number of weights, or ``which`` is none of the three
        strings.
      TypeError: if a leaf does not have a floating-point dtype.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, -2.0, 3.0]) * w**2) / 2
      >>> pairs = measures.top_eigenpairs(loss_fn, jnp.ones(3), jax.random.key(0), k=2)
      >>> print([f"{value:.3f}" for value in pairs.values], pairs.converged)
      ['3.000', '1.000'] [ True  True]

    References:
      Golub and Van Loan, Matrix Computations, 4th edition, chapter 10.
    """
    matrix = curvature_matrix(loss_fn, params, curvature, scale)
    if which not in ORDERS:
        raise ValueError(
            f"which must be one of {', '.join(ORDERS)}, got {which!r}: for example, write "
            'which="LA" for the largest eigenvalues.'
        )
    if not 1 <= k <= matrix.size:
        raise ValueError(
            f"k must be between 1 and the number of weights, {matrix.size}, got {k}: for example, "
            "write k=1."
        )
    steps = min(max(4 * k, 20), matrix.size) if steps is None else steps
    if not k <= steps <= matrix.size:
        raise ValueError(
            f"steps must be between k = {k} and the number of weights, {matrix.size}, got {steps}: "
            "write steps=None for the default."
        )
    start_key, restart_key = jax.random.split(key)
    first = jax.random.normal(start_key, (matrix.size,), matrix.dtype)
    if start is not None:
        first = to_vector(jax.tree.map(_sum_of_vectors, start, params)).astype(matrix.dtype)
    krylov = tridiagonalize(matrix.matvec, first, steps, restart_key)
    ritz_values, ritz_vectors = krylov.eigh()
    outermost = jnp.argsort(ORDERS[which](ritz_values))[:k]
    found = matmul(ritz_vectors[:, outermost].T, krylov.basis)
    found = found / jnp.linalg.norm(found, axis=1, keepdims=True)

    def rayleigh_quotient(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = matrix.matvec(v)
        value = matmul(v, product)
        return value, norm(product - value * v)

    values, residuals = jax.lax.map(rayleigh_quotient, found)
    converged = residuals <= TOLERANCE * jnp.max(jnp.abs(ritz_values))
    return Eigenpairs(values, jax.lax.map(matrix.to_tree, found), residuals, converged)


def _sum_of_vectors(start: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum over the leading axis if ``start`` has one more axis than the weight."""
    return jnp.sum(start, axis=0) if jnp.ndim(start) > jnp.ndim(weight) else start
