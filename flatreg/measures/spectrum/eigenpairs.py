"""The largest and smallest eigenvalues of the Hessian, by Lanczos iteration, with residuals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul, norm
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, curvature_matrix, to_vector
from flatreg.measures.spectrum.restarts import ORDERS, TOLERANCE, Which, search
from flatreg.typing import Grads, Params, Scale


class Eigenpairs(NamedTuple):
    r"""The k requested eigenpairs, in the order of ``which``.

    Attributes:
      values: the eigenvalues λᵢ, shape (k,).
      vectors: the unit eigenvectors vᵢ, a tree like the parameters with a leading axis k.
      residuals: ‖Hvᵢ − λᵢvᵢ‖, computed with one more product each, shape (k,). H has an eigenvalue
        within this distance of λᵢ.
      converged: a boolean per pair, shape (k,). It is True if the residual is at most 0.1% of the
        largest \|λ\|, and if the latest Lanczos run did not find an eigenvalue that belongs before
        λᵢ but is missing in the list, to within the same tolerance. Then λᵢ is the i-th eigenvalue
        in the order of ``which``, counted with multiplicities, within this tolerance.
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

    An eigenvalue of multiplicity m is listed m times. A single Lanczos run finds it only once.
    Therefore a second, shorter run confirms the list: it is orthogonal to the converged
    eigenvectors and has a random start. If it finds an eigenvalue that is missing in the list,
    that eigenvalue is inserted, and further runs follow, at most k of them.

    In exact arithmetic the random start has a component along every eigenvector with probability
    one, so that no eigenvalue is invisible to the second run. What a run of few steps finds is
    still a lower bound of the outermost eigenvalue: where many eigenvalues lie closer to each other
    than the tolerance of ``converged``, the list may contain only some of them.

    The values can be differentiated, by the formula vᵀ(∂H)v for a simple eigenvalue. The vectors
    are constants in derivatives.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: the parameters at which to take the Hessian.
      key: the random key for the start vector.
      k: the number of eigenpairs, at most the number of weights.
      which: ``"LA"`` for the largest eigenvalues, ``"SA"`` for the smallest, ``"LM"`` for the
        largest in magnitude.
      steps: the number of Lanczos steps in the first run, each one Hessian-vector product. By
        default max(4k, 20), or the number of weights if that is smaller. Eigenvalues inside the
        spectrum or close to each other need more steps; check ``converged``. The confirming run
        has max(10, ``steps``/2, k) steps, and the residuals cost another k products: 35 products in
        total for k = 5. If eigenvalues turn out to be missing, there are up to k more runs, of at
        most max(10, ``steps``, k) steps. A single run suffices if ``steps`` is the number of
        weights. About ``steps`` + 4k vectors are kept in memory.
      start: the ``vectors`` of an earlier result, whose sum starts the first run, or a tree like
        ``params``. A start from nearby parameters saves steps. No start hides an eigenvalue,
        because the confirming run has a random one.
      curvature: the matrix to measure: the Hessian if None. For the Gauss–Newton matrix, pass the
        result of :func:`gauss_newton`. For a loss without forward-mode derivatives, pass
        ``functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)``. ``residuals`` and
        ``converged`` refer to the matrix with these products; with finite differences, it differs
        from the Hessian by their error.
      scale: ``params -> T`` with one factor per weight, for the eigenvalues of T·H·T.

    Returns:
      :class:`Eigenpairs`.

    Raises:
      ValueError: if k or ``steps`` exceeds the number of weights, or ``which`` is not one of
        the three strings.
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
    # The gradient of an eigenvalue, vᵀ(∂H)v, does not need that of the search.
    constant = matrix._replace(matvec=lambda v: jax.lax.stop_gradient(matrix.matvec(v)))
    found = search(constant, jax.lax.stop_gradient(first), restart_key, k, which, steps)
    vectors = found.vectors / jnp.linalg.norm(found.vectors, axis=1, keepdims=True)

    def rayleigh_quotient(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = matrix.matvec(v)
        value = matmul(v, product)
        return value, norm(product - value * v)

    values, residuals = jax.lax.map(rayleigh_quotient, vectors)
    converged = (residuals <= TOLERANCE * found.largest) & found.complete()
    return Eigenpairs(values, jax.lax.map(matrix.to_tree, vectors), residuals, converged)


def _sum_of_vectors(start: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum over the leading axis if ``start`` has one more axis than the weight."""
    return jnp.sum(start, axis=0) if jnp.ndim(start) > jnp.ndim(weight) else start
