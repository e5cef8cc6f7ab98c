r"""Lanczos iterations: extreme eigenvalues and singular values from matrix-vector products alone.

A Lanczos iteration does not need the entries of a matrix A, only the products v ↦ Av. From a start
vector v it builds an orthonormal basis q₁, q₂, … of the Krylov space spanned by v, Av, A²v, …: each
step multiplies the latest basis vector by A and keeps the part of the product that is orthogonal to
all earlier basis vectors. In this basis, A is represented by a small matrix whose extreme
eigenvalues (or singular values) approach those of A within tens of steps.

* :func:`tridiagonalize` is the symmetric iteration. With the basis as the rows of Q it returns
  T = QAQᵀ, which is tridiagonal because A is symmetric. The eigenvalues of T are the Ritz values.
* :func:`largest_singular_value` is the Golub–Kahan iteration for a rectangular A. It alternates
  between A and Aᵀ and builds two bases, one for the inputs and one for the outputs.

Two safeguards are common to both iterations:

* *Reorthogonalization.* In floating point, the recurrence loses orthogonality as soon as a Ritz
  value converges, and then finds copies of this value. Each new vector is therefore orthogonalized
  against all earlier ones, twice: the second pass removes the rounding errors of the first.
* *Restart at breakdown.* If the Krylov space is invariant under A, the orthogonal part of the
  product is only rounding error. For the zero matrix and the identity, this happens in the first
  step. An orthogonal part of the size of rounding error is discarded, and the iteration continues
  with a random vector that is orthogonal to the basis.

A Krylov space contains only one eigenvector per distinct eigenvalue, namely the one along the part
of the start vector in that eigenspace. The others are orthogonal to the Krylov space, and an
iteration whose steps end before a breakdown does not see them. They are found by another iteration
that is orthogonal to the eigenvectors known so far (``orthogonal_to``).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import matmul, norm, unit


class Tridiagonal(NamedTuple):
    """An orthonormal basis Q of a Krylov space, and T = QAQᵀ.

    Attributes:
      basis: Q, shape (steps, n), with orthonormal rows.
      diagonal: the diagonal of T, shape (steps,).
      off_diagonal: the first superdiagonal of T, shape (steps,). Its last entry lies outside T.
      products: the number of products made. The rows and entries beyond it are zero.
    """

    basis: jax.Array
    diagonal: jax.Array
    off_diagonal: jax.Array
    products: jax.Array | int

    def eigh(self) -> tuple[jax.Array, jax.Array]:
        """The Ritz values in ascending order, and the eigenvectors of T as columns.

        Only the first ``products`` of them are meaningful.

        ``jax.scipy.linalg.eigh_tridiagonal`` is not used, because its eigenvectors of a zero matrix
        are NaN, and JAX below 0.10 computes eigenvalues only. In JAX 0.12 on a CPU, it also takes
        more time: for 20 steps 3.7 s instead of 0.45 s of CPU time to compile and 0.38 ms instead
        of 0.16 ms to run, for 60 steps 3.1 s, 0.2 s, 0.53 ms and 0.30 ms
        (``python -m benchmarks.step_cost --alternatives``).
        """
        indices = jnp.arange(self.diagonal.size)
        off = jnp.where(indices < self.products - 1, self.off_diagonal, 0)
        # A value above the eigenvalues of T moves the rest of the matrix to the end of the list.
        bound = jnp.max(jnp.abs(self.diagonal)) + 2 * jnp.max(jnp.abs(off))
        diagonal = jnp.where(
            indices < self.products, self.diagonal, jnp.where(bound == 0, 1, 2 * bound)
        )
        off = jnp.diag(off[:-1], 1)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + off + off.T)
        return values, vectors

    def residuals(self, vectors: jax.Array) -> jax.Array:
        """The norms ‖Av − λv‖ of the Ritz pairs by Lanczos's recurrence, without products.

        Rounding error is not included. If the iteration is orthogonal to some given vectors, these
        are the norms of the part that is orthogonal to them, too.

        Args:
          vectors: the eigenvectors of T as columns.
        """
        last = self.products - 1
        return self.off_diagonal[last] * jnp.abs(vectors[last])


class _Symmetric(NamedTuple):
    """The loop carry of :func:`tridiagonalize`."""

    rows: jax.Array  # the vectors that all others are orthogonal to, then the basis
    diagonal: jax.Array
    off_diagonal: jax.Array
    vector: jax.Array  # the next row of the basis
    largest: jax.Array  # the largest ‖Aq‖ so far, about ‖A‖


def tridiagonalize(
    matvec: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int,
    key: jax.Array,
    *,
    products: jax.Array | None = None,
    orthogonal_to: jax.Array | None = None,
) -> Tridiagonal:
    """Symmetric Lanczos iteration with full reorthogonalization.

    Args:
      matvec: v ↦ Av for a symmetric A, on vectors of shape (n,).
      start: the first vector, shape (n,), of any nonzero length.
      steps: the number of products, at most n. The same number of vectors is kept in memory.
      key: the random key for the vectors with which the iteration continues after a breakdown.
      products: a smaller number of products that is known only at run time; ``steps`` if None.
      orthogonal_to: orthonormal vectors V as rows, shape (m, n), which may contain zero rows. The
        iteration then runs in their orthogonal complement, with PAP in place of A, P = 1 − VᵀV.
        There must be at most n minus their number of products.

    Returns:
      The basis Q and T = QAQᵀ.
    """
    eps = float(np.finfo(start.dtype).eps)
    if orthogonal_to is None:
        orthogonal_to = jnp.zeros((0, start.size), start.dtype)
    fixed = len(orthogonal_to)

    def step(i: jax.Array, carry: _Symmetric) -> _Symmetric:
        rows, diagonal, off_diagonal, q, largest = carry
        rows = rows.at[fixed + i].set(q)
        product = matvec(q)
        diagonal = diagonal.at[i].set(matmul(q, product))
        largest = jnp.maximum(largest, norm(product))
        random = jax.random.normal(jax.random.fold_in(key, i), q.shape, q.dtype)
        q, length = _next_vector(rows, product, eps * largest, restart=random)
        return _Symmetric(rows, diagonal, off_diagonal.at[i].set(length), q, largest)

    zeros = jnp.zeros(steps, start.dtype)
    rows = jnp.concatenate([orthogonal_to, jnp.zeros((steps, start.size), start.dtype)])
    first = unit(_orthogonal_part(orthogonal_to, unit(start)))
    init = _Symmetric(rows, zeros, zeros, first, jnp.zeros((), start.dtype))
    total = steps if products is None else products
    last: _Symmetric = jax.lax.fori_loop(0, total, step, init)
    return Tridiagonal(last.rows[fixed:], last.diagonal, last.off_diagonal, total)


class _GolubKahan(NamedTuple):
    """The loop carry of :func:`largest_singular_value`."""

    inputs: jax.Array  # the basis of the inputs as rows
    outputs: jax.Array  # the basis of the outputs as rows
    vector: jax.Array  # the next row of ``inputs``
    matrix: jax.Array  # A in these bases: outputs · A · inputsᵀ


def largest_singular_value(
    linear_fn: Callable[[jax.Array], jax.Array],
    x: jax.ShapeDtypeStruct,
    steps: int,
    key: jax.Array,
) -> jax.Array:
    """A lower bound on σ_max(A): ‖A(v)‖ for the unit vector v that Golub–Kahan iteration finds.

    The iteration multiplies an input by A, keeps the part of the image that is orthogonal to the
    earlier images, multiplies that by Aᵀ, and keeps the part that is orthogonal to the earlier
    inputs. v is the combination of the inputs that the small matrix stretches most. The result is
    ‖A(v)‖, computed for this unit vector, so only rounding error can raise it above σ_max.

    Args:
      linear_fn: x ↦ A(x), a linear function between arrays of any shapes. The squares of its
        outputs must not overflow, so scale A beforehand if they would.
      x: the shape and dtype of the argument of ``linear_fn``.
      steps: the number of products with A, and also with Aᵀ. It is capped at the size of x.
      key: the random key for the start vector, and for the vectors with which the iteration
        continues after a breakdown.

    Returns:
      A scalar of the dtype of ``x``, zero if the input or the output is empty.
    """
    y = jax.eval_shape(linear_fn, x)
    if 0 in (x.size, y.size):
        return jnp.zeros((), x.dtype)
    transposed = jax.linear_transpose(linear_fn, x)
    steps = min(steps, x.size)
    keys = jax.random.split(key, steps)
    noise = 100 * float(np.finfo(x.dtype).eps)

    def step(i: jax.Array, carry: _GolubKahan) -> _GolubKahan:
        inputs, outputs, vector, matrix = carry
        inputs = inputs.at[i].set(vector)
        image = linear_fn(vector.reshape(x.shape)).ravel()
        # If the image lies in the span of the earlier ones, the new row of outputs is zero.
        left, _ = _next_vector(outputs, image, noise * norm(image))
        outputs = outputs.at[i].set(left)
        matrix = matrix.at[:, i].set(matmul(outputs, image))
        back = transposed(left.reshape(y.shape))[0].ravel()
        random = jax.random.normal(keys[i], (x.size,), x.dtype)
        vector, _ = _next_vector(inputs, back, noise * norm(back), restart=random)
        return _GolubKahan(inputs, outputs, vector, matrix)

    init = _GolubKahan(
        inputs=jnp.zeros((steps, x.size), x.dtype),
        outputs=jnp.zeros((steps, y.size), x.dtype),
        vector=unit(jax.random.normal(keys[-1], (x.size,), x.dtype)),
        matrix=jnp.zeros((steps, steps), x.dtype),
    )
    found: _GolubKahan = jax.lax.fori_loop(0, steps, step, init)
    most_stretched = jnp.linalg.svd(found.matrix)[2][0]
    v = unit(matmul(most_stretched, found.inputs)).reshape(x.shape)
    value: jax.Array = jnp.linalg.norm(linear_fn(v))
    return value


def _next_vector(
    basis: jax.Array, product: jax.Array, noise: jax.Array, restart: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The next vector of an orthonormal basis, and the length of the new part of ``product``.

    The new part is orthogonal to the rows of ``basis``, and the next vector is the unit vector
    along it. If the length of the new part is at most ``noise``, or if the new part is rounding
    error in the span of the basis, it counts as zero, and the next vector is the unit vector along
    the orthogonal part of ``restart`` instead (zero if ``restart`` is None).
    """
    rest = _orthogonal_part(basis, product)
    length = norm(rest)
    direction = _orthogonal_part(basis, unit(rest))
    ended = (length <= noise) | (norm(direction) < 0.5)
    other = 0 if restart is None else _orthogonal_part(basis, unit(restart))
    return unit(jnp.where(ended, other, direction)), jnp.where(ended, 0, length)


def _orthogonal_part(basis: jax.Array, vector: jax.Array) -> jax.Array:
    """The part of a vector that is orthogonal to the orthonormal rows of ``basis``."""
    for _ in range(2):
        vector = vector - matmul(basis.T, matmul(basis, vector))
    return vector
