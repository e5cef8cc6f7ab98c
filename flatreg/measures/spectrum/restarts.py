"""The outermost eigenpairs with their multiplicities, by Lanczos iterations with deflation.

One Lanczos iteration finds each repeated eigenvalue once, because a Krylov space contains only one
vector of each eigenspace. Every further run is therefore orthogonal to the eigenvectors that have
converged so far, and starts from a random vector. Its outermost Ritz value tells whether the list
is complete:

* If it does not lie further out than an eigenvalue of the list, no eigenvalue is missing in front
  of that one.
* Otherwise an eigenvalue is missing. The list is merged with the Ritz pairs of the run, and
  another run follows.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, unit
from flatreg.measures.spectrum.curvature import CurvatureMatrix

TOLERANCE = 1e-3  # of a converged residual, relative to the largest |λ|
DEFLATED = 1e-4  # below this residual, relative to the largest |λ|, a run is orthogonal to a vector
RESOLUTION = 1e-5  # two values are the same within this distance, relative to the largest |λ|
CONFIRMING_STEPS = 10  # at least, in a run that confirms a list

Which: TypeAlias = Literal["LA", "SA", "LM"]
"""Which eigenvalues come first: largest, smallest, or largest in magnitude (as in ARPACK)."""

ORDERS: dict[Which, Callable[[jax.Array], jax.Array]] = {
    "LA": lambda values: -values,
    "SA": lambda values: values,
    "LM": lambda values: -jnp.abs(values),
}
"""Functions of the eigenvalues that are smaller for those that come first."""


class Found(NamedTuple):
    """The list of eigenpairs, and what the latest run says about it. The loop carry of the search.

    Attributes:
      ranks: the value of the order for each pair, ascending, shape (k,).
      vectors: the orthonormal Ritz vectors as rows, shape (k, n).
      residuals: the residuals of the pairs by Lanczos's recurrence, shape (k,).
      outermost: the rank of the outermost Ritz value in the latest run.
      largest: the largest |λ| so far.
      runs: the number of runs.
      missing: whether a run has found an eigenvalue that was missing in the list.
      long: whether the next run has the full number of steps.
      again: whether another run is needed.
    """

    ranks: jax.Array
    vectors: jax.Array
    residuals: jax.Array
    outermost: jax.Array
    largest: jax.Array
    runs: jax.Array
    missing: jax.Array
    long: jax.Array
    again: jax.Array

    def complete(self) -> jax.Array:
        """Whether the latest run found no eigenvalue that is missing in front of each pair."""
        return self.ranks <= self.outermost + TOLERANCE * self.largest


def confirming_steps(k: int, steps: int) -> int:
    """The number of Lanczos steps in a run that confirms a list of k pairs."""
    return max(CONFIRMING_STEPS, steps // 2, k)


def search(
    matrix: CurvatureMatrix, start: jax.Array, key: jax.Array, k: int, which: Which, steps: int
) -> Found:
    """The k outermost eigenpairs, in the order of ``which``.

    The first run starts from ``start`` and takes ``steps`` steps. If that is fewer than the number
    of weights, it is followed by a run of :func:`confirming_steps`. At most k more runs follow
    while eigenvalues turn out to be missing. They have the full number of steps as soon as a short
    one did not suffice for convergence.
    """
    short = confirming_steps(k, steps)
    space = min(max(steps, short), matrix.size)
    order = ORDERS[which]

    def run(found: Found) -> Found:
        first = found.runs == 0
        restart_key, start_key = jax.random.split(jax.random.fold_in(key, found.runs))
        deflated = found.residuals <= DEFLATED * found.largest
        wanted = jnp.where(first, steps, jnp.where(found.long, space, short))
        count = jnp.minimum(wanted, matrix.size - jnp.sum(deflated)).astype(jnp.int32)
        random = jax.random.normal(start_key, start.shape, start.dtype)
        rest = jnp.sum(jnp.where(deflated[:, None], 0, found.vectors), axis=0)
        krylov = tridiagonalize(
            matrix.matvec,
            jnp.where(first, start, unit(random) + unit(rest)),
            space,
            restart_key,
            products=count,
            orthogonal_to=jnp.where(deflated[:, None], found.vectors, 0),
        )
        values, vectors = krylov.eigh()
        ritz = jnp.arange(space) < count
        ranks = jnp.where(ritz, order(values), jnp.inf)
        largest = jnp.maximum(found.largest, jnp.max(jnp.where(ritz, jnp.abs(values), 0)))

        # The deflated pairs and the Ritz pairs of this run are orthonormal. Keep the first k.
        both = jnp.concatenate([jnp.where(deflated, found.ranks, jnp.inf), ranks])
        chosen = jnp.argsort(both)[:k]
        rows = matmul(jax.nn.one_hot(chosen, k, dtype=start.dtype), found.vectors)
        columns = jax.nn.one_hot(chosen - k, space, dtype=start.dtype)
        rows += matmul(matmul(columns, vectors.T), krylov.basis)
        residuals = jnp.concatenate([found.residuals, krylov.residuals(vectors)])[chosen]
        merged = found._replace(ranks=both[chosen], vectors=rows, residuals=residuals)

        outermost = jnp.min(ranks)
        close = jnp.where(deflated, RESOLUTION, TOLERANCE) * largest
        converged = found.residuals <= TOLERANCE * found.largest
        misses = jnp.any(converged & (outermost < found.ranks - close))
        better = jnp.sum(merged.ranks) < jnp.sum(found.ranks) - RESOLUTION * largest
        accepted = misses | better
        merged = jax.tree.map(lambda x, y: jnp.where(accepted, x, y), merged, found)
        finished = jnp.all(
            (merged.residuals <= DEFLATED * largest)
            & (merged.ranks <= outermost + RESOLUTION * largest)
        )
        missing = found.missing | misses
        updated: Found = merged._replace(
            outermost=outermost,
            largest=largest,
            runs=found.runs + 1,
            missing=missing,
            long=missing & jnp.any(merged.residuals > DEFLATED * largest),
            again=first | misses | (missing & accepted & ~found.long & ~finished),
        )
        return updated

    infinite = jnp.full(k, jnp.inf, start.dtype)
    zero = jnp.zeros((), start.dtype)
    no = jnp.zeros((), bool)
    nothing = Found(
        ranks=infinite,
        vectors=jnp.zeros((k, matrix.size), start.dtype),
        residuals=infinite,
        outermost=zero,
        largest=zero,
        runs=jnp.zeros((), jnp.int32),
        missing=no,
        long=no,
        again=~no,
    )
    if steps == matrix.size:  # The run spans the whole space.
        return run(nothing)._replace(outermost=jnp.full((), jnp.inf, start.dtype))
    found: Found = jax.lax.while_loop(
        lambda found: found.again & (found.runs < k + 2), run, nothing
    )
    return found
