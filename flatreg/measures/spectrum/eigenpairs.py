"""The ends of the Hessian's spectrum, by Lanczos iteration, with the residuals as computed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, norm
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, operator, to_vector
from flatreg.typing import Grads, Params, Scale

TOLERANCE = 1e-3  # of a converged residual, relative to the largest |λ|
ORDERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "LA": lambda values: -values,
    "SA": lambda values: values,
    "LM": lambda values: -jnp.abs(values),
}


class Eigenpairs(NamedTuple):
    """The k eigenpairs of one end of the spectrum, the outermost first.

    Attributes:
      values: λᵢ, shape (k,).
      vectors: unit eigenvectors, a tree like the parameters with a leading axis k.
      residuals: ‖Hvᵢ − λᵢvᵢ‖ as computed, shape (k,): an eigenvalue lies within it of λᵢ.
      converged: whether the residual is below a thousandth of max |λ|, shape (k,).
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
    which: str = "LA",
    steps: int | None = None,
    start: Grads | None = None,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Eigenpairs:
    r"""The outermost eigenvalues and eigenvectors of the Hessian, by Lanczos iteration.

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`.
      params: where the Hessian is taken.
      key: draws the start.
      k: how many pairs, at most the number of weights.
      which: "LA", the largest; "SA", the smallest; "LM", the largest in magnitude.
      steps: Hessian-vector products before the k for the residuals, and vectors in memory; by
        default max(4k, 20). Inner or crowded eigenvalues need more: see ``converged``.
      start: the ``vectors`` of an earlier result to start from (their sum), or a tree like
        ``params``. Near a solution that was measured before, fewer steps do.
      curvature: :func:`hessian` if None; see :func:`gauss_newton`.
      scale: ``params -> T``, for the eigenvalues of T·H·T.

    Returns:
      :class:`Eigenpairs`.

    Raises:
      ValueError: if k or ``steps`` exceed the number of weights, or ``which`` is none of these.
      TypeError: if a leaf is not of floating point.

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
    matrix = operator(loss_fn, params, curvature, scale)
    if which not in ORDERS:
        raise ValueError(f"which must be one of {', '.join(ORDERS)}, got {which!r}.")
    if not 1 <= k <= matrix.size:
        raise ValueError(f"k must be between 1 and the {matrix.size} weights, got {k}.")
    steps = min(max(4 * k, 20), matrix.size) if steps is None else steps
    if not k <= steps <= matrix.size:
        raise ValueError(f"steps must be between k and the {matrix.size} weights, got {steps}.")
    start_key, other_key = jax.random.split(key)
    first = jax.random.normal(start_key, (matrix.size,), matrix.dtype)
    if start is not None:
        first = to_vector(jax.tree.map(_sum_of_vectors, start, params)).astype(matrix.dtype)
    krylov = tridiagonalize(matrix.matvec, first, steps, other_key)
    values, vectors = krylov.eigh()
    outermost = jnp.argsort(ORDERS[which](values))[:k]
    found = matmul(vectors[:, outermost].T, krylov.basis)
    found = found / jnp.linalg.norm(found, axis=1, keepdims=True)

    def refine(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = matrix.matvec(v)
        value = matmul(v, product)
        return value, norm(product - value * v)

    refined, residuals = jax.lax.map(refine, found)
    converged = residuals <= TOLERANCE * jnp.max(jnp.abs(values))
    return Eigenpairs(refined, jax.lax.map(matrix.to_tree, found), residuals, converged)


def _sum_of_vectors(start: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(start, axis=0) if jnp.ndim(start) > jnp.ndim(weight) else start
