"""The largest eigenvalue of the Hessian relative to the threshold of the optimizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike, check_key, check_nonnegative
from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, norm, unit
from flatreg.measures.checks import check_weights
from flatreg.measures.dataset import LossFn
from flatreg.measures.edge_of_stability.optimizers import Hyperparameters, linear_optimizer
from flatreg.measures.spectrum.curvature import (
    Curvature,
    CurvatureMatrix,
    curvature_matrix,
    to_vector,
)
from flatreg.typing import Grads, Params, Scalar

COLD_STEPS = 20  # Lanczos steps per run without a start
WARM_STEPS = 5  # the most products with a start
MOST_RUNS = 5  # runs without a start, each from the vector of the one before
TOLERANCE = 1e-4  # of the residual relative to the largest |λ|, at which no further run follows
RESOLUTION = 1e-5  # A residual below it, relative to the largest |λ|, is rounding error.
FRESH = 0.01  # the length of the random part of a warm start


class Stability(NamedTuple):
    """The sharpness and the threshold at which the optimizer becomes unstable.

    Attributes:
      sharpness: λ, the largest eigenvalue of P^{-1/2}HP^{-1/2}, where P is the preconditioner of
        the optimizer and P = 1 for SGD. It is a Rayleigh quotient, so it is at most the true
        eigenvalue, up to rounding.
      threshold: the value of the sharpness above which the optimizer diverges on the quadratic
        approximation of the loss, for example 2/η for gradient descent.
      ratio: ``sharpness`` / ``threshold``. Training is at the edge of stability where it is 1.
      residual: ‖P^{-1/2}HP^{-1/2}v − λv‖ for the vector v. An eigenvalue lies within this distance
        of ``sharpness``.
      vector: the unit vector v, a tree like the parameters. Pass it as ``start`` to the next
        measurement.
    """

    sharpness: jax.Array
    threshold: jax.Array
    ratio: jax.Array
    residual: jax.Array
    vector: Grads


def stability(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    *,
    learning_rate: Scalar,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    opt_state: optax.OptState | None = None,
    weight_decay: Scalar | None = None,
    b1: Scalar | None = None,
    b2: Scalar | None = None,
    eps: Scalar | None = None,
    eps_root: Scalar | None = None,
    start: Grads | None = None,
    steps: int | None = None,
    tolerance: Scalar = 0.1,
    curvature: Curvature | None = None,
) -> Stability:
    r"""How close an optimizer is to the edge of stability: λ_max and its threshold.

    With a fixed Hessian, an optimizer diverges along the top eigenvector if λ_max exceeds a
    threshold. Full-batch training often raises λ_max until it reaches the threshold, and then
    hovers there.

    ==========================  ==================  ==========================
    optimizer                   preconditioner P    threshold
    ==========================  ==================  ==========================
    gradient descent            1                   2/η
    momentum β                  1                   (2+2β)/η
    Nesterov's momentum β       1                   (2+2β)/((1+2β)η)
    RMSProp                     √v                  2/η, or as with momentum
    Adam                        √v̂ + ε              (2+2β₁)/((1−β₁)η)
    AdamW with weight decay ω   √v̂ + ε              (1+β₁)(2/η − ω)/(1−β₁)
    ==========================  ==================  ==========================

    The optimizer is the one whose state ``opt_state`` contains, anywhere in a chain and inside
    wrappers of Optax. Without ``opt_state``, it is SGD. The thresholds are those of the optimizer
    alone. They do not include:

    * methods that replace the gradient, such as SAM, which have edges of their own;
    * transformations without a state, which cannot be recognized, such as clipping, sign descent
      or the trust ratio of LAMB;
    * Adam's bias correction of the first moment, which disappears during training;
    * optimizers that share Adam's type of state, such as Adamax;
    * directions of negative curvature, in which every learning rate is unstable.

    Leaves that ``optax.masked`` or ``optax.partition`` hides from the optimizer with second moments
    count as constants.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`. It should be the
        training loss on all data, including weight decay that is added to the gradient.
      params: the parameters at which to take the Hessian.
      key: the random key for the start vector.
      learning_rate: η > 0, the learning rate of the step. For a schedule, pass its value.
      momentum: β, the momentum of SGD or RMSProp, 0 by default. It is required if ``opt_state`` has
        a momentum buffer, unless ``optax.inject_hyperparams`` keeps its value in the state.
      nesterov: whether the momentum (for Adam, ``b1``) is Nesterov's.
      opt_state: the optimizer state. It determines the kind of the optimizer and P.
      weight_decay: ω, the decoupled weight decay of AdamW. By default the value in the state of
        ``optax.inject_hyperparams``, otherwise 0.
      b1: β₁ of Adam. By default the value in the state of ``inject_hyperparams``, otherwise 0.9.
      b2: the decay of the second moments, for v̂ = v/(1 − b2^count). By default the value in the
        state of ``inject_hyperparams``, otherwise 0.999 for Adam and 0.9 for RMSProp, which
        corrects the bias only with ``bias_correction=True``.
      eps: ε in P = √(v̂ + ``eps_root``) + ε. By default the value in the state of
        ``inject_hyperparams``, otherwise 1e-8 for Adam, and 0 for RMSProp.
      eps_root: the number inside the square root. By default 0 for Adam. For RMSProp, 1e-8, which
        is its ``eps`` in Optax.
      start: the ``vector`` of an earlier measurement of the same training. One percent of a random
        vector is added to it, so that a direction that has become the sharpest one is found.
      steps: the number of Lanczos steps, each one Hessian-vector product. With a start, it is the
        largest number of steps, 5 by default. Without a start, it is 20 by default, and one more
        product gives the residual. Up to four more runs of this length follow, until the residual
        is below 1e-4 of the largest \|λ\|.
      tolerance: the residual relative to the largest \|λ\| at which a search with a start ends,
        after its second step at the earliest. To make all steps, pass 0.
      curvature: the matrix to measure. If None, the Hessian. To measure the Gauss–Newton matrix
        instead, pass the result of :func:`gauss_newton`.

    Returns:
      :class:`Stability`.

    Raises:
      TypeError: if the loss is not a floating-point scalar, or ``learning_rate`` is a schedule.
      ValueError: if no threshold is known for the optimizer, if the momentum is missing, or if
        ``start`` or ``opt_state`` belongs to other parameters.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 4.0]) * w**2) / 2
      >>> at = measures.stability(loss_fn, jnp.ones(2), jax.random.key(0), learning_rate=0.25)
      >>> print(f"λ = {at.sharpness:.2f}, 2/η = {at.threshold:.2f}, ratio {at.ratio:.2f}")
      λ = 4.00, 2/η = 8.00, ratio 0.50

    References:
      Cohen et al., `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
      <https://arxiv.org/abs/2103.00065>`_, ICLR 2021. Cohen et al., `Adaptive Gradient Methods at
      the Edge of Stability <https://arxiv.org/abs/2207.14484>`_, 2022.
    """
    hyperparameters = Hyperparameters(
        learning_rate, momentum, nesterov, weight_decay, b1, b2, eps, eps_root
    )
    return measured_stability(
        loss_fn,
        params,
        key,
        hyperparameters,
        opt_state=opt_state,
        start=start,
        steps=steps,
        tolerance=tolerance,
        curvature=curvature,
    ).stability


class Measurement(NamedTuple):
    """A stability, and the vector with which the next measurement of the training starts."""

    stability: Stability
    start: Grads


def measured_stability(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    hyperparameters: Hyperparameters,
    *,
    opt_state: optax.OptState | None = None,
    start: Grads | None = None,
    steps: int | None = None,
    tolerance: Scalar = 0.1,
    curvature: Curvature | None = None,
    least: jax.Array | int = 2,
) -> Measurement:
    """Measures :func:`stability`, with at least ``least`` products if there is a start."""
    check_weights(params)
    check_key(key, "measures.stability(loss_fn, params, jax.random.key(0), learning_rate=0.1)")
    optimizer = linear_optimizer(opt_state, params, hyperparameters)
    factors = optimizer.factors
    scale = None if factors is None else lambda params: factors
    matrix = curvature_matrix(loss_fn, params, curvature, scale)
    if start is not None:
        if not alike(start, params):
            raise ValueError(
                f"start must have the shapes of params, {jax.tree.map(jnp.shape, params)}, but has "
                f"{jax.tree.map(jnp.shape, start)}: pass the vector of an earlier measurement, "
                "start=measured.vector."
            )
        start = to_vector(start).astype(matrix.dtype)
    if steps is None:
        steps = COLD_STEPS if start is None else WARM_STEPS
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: for example, write steps=5.")
    check_nonnegative(tolerance=tolerance)
    steps = min(steps, matrix.size)
    start_key, restart_key = jax.random.split(key)
    random = unit(jax.random.normal(start_key, (matrix.size,), matrix.dtype))
    if start is None:
        v = _top_vector(matrix, restart_key, random, steps)
        product = matrix.matvec(v)
    else:
        first = unit(unit(start) + FRESH * random)
        v, product = _drifted_vector(matrix, first, steps, least, tolerance)
    sharpness = matmul(v, product)
    found = Stability(
        sharpness=sharpness,
        threshold=optimizer.threshold.astype(matrix.dtype),
        ratio=sharpness / optimizer.threshold,
        residual=norm(product - sharpness * v),
        vector=matrix.to_tree(v),
    )
    # Half a step of power iteration, which reduces all eigenvectors with smaller |λ| and costs no
    # product.
    return Measurement(found, matrix.to_tree(unit(product + jnp.abs(sharpness) * v)))


class _Run(NamedTuple):
    """The loop carry of :func:`_top_vector`."""

    vector: jax.Array
    runs: jax.Array
    converged: jax.Array


def _top_vector(
    matrix: CurvatureMatrix, key: jax.Array, random: jax.Array, steps: int
) -> jax.Array:
    """The unit Ritz vector of the largest eigenvalue, from a random vector, with restarts."""

    def run(carry: _Run) -> _Run:
        restarts = jax.random.fold_in(key, carry.runs)
        krylov = tridiagonalize(matrix.matvec, carry.vector, steps, restarts)
        values, vectors = krylov.eigh()
        largest = jnp.max(jnp.abs(values))
        return _Run(
            vector=unit(matmul(krylov.basis.T, vectors[:, -1])),
            runs=carry.runs + 1,
            converged=krylov.residuals(vectors)[-1] <= TOLERANCE * largest,
        )

    none = jnp.zeros((), jnp.int32)
    first = _Run(random, none, none > 0)
    last: _Run = jax.lax.while_loop(lambda c: ~c.converged & (c.runs < MOST_RUNS), run, first)
    return last.vector


class _Search(NamedTuple):
    """The loop carry of :func:`_drifted_vector`.

    Attributes:
      basis: orthonormal vectors as rows, shape (steps, n). The rows beyond ``products`` are zero.
      images: the products of the matrix with the rows of ``basis``.
      vector: the Ritz vector v of the largest eigenvalue.
      image: the product of the matrix with v.
      following: the unit vector along the residual of v, which is orthogonal to the basis.
      products: the number of products.
      converged: whether the residual is small enough.
    """

    basis: jax.Array
    images: jax.Array
    vector: jax.Array
    image: jax.Array
    following: jax.Array
    products: jax.Array
    converged: jax.Array


def _drifted_vector(
    matrix: CurvatureMatrix,
    start: jax.Array,
    steps: int,
    least: jax.Array | int,
    tolerance: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """The Ritz vector of the largest eigenvalue near a unit vector, and the product with it.

    The basis grows by the residual, so it spans the same space as a Lanczos iteration. The product
    with the Ritz vector is a combination of the products with the basis, and costs no further one.
    """

    def extend(search: _Search) -> _Search:
        count = search.products + 1
        basis = search.basis.at[search.products].set(search.following)
        images = search.images.at[search.products].set(matrix.matvec(search.following))
        small = matmul(basis, images.T)
        small = (small + small.T) / 2
        # Unused rows get an eigenvalue below all others.
        lowest = -2 * norm(small) - 1
        unused = jnp.arange(steps) >= count
        values, vectors = jnp.linalg.eigh(small + jnp.diag(jnp.where(unused, lowest, 0)))
        largest = jnp.max(jnp.where(values > lowest / 2, jnp.abs(values), 0))
        v, image = matmul(vectors[:, -1], basis), matmul(vectors[:, -1], images)
        following = image - values[-1] * v
        residual = norm(following)
        for _ in range(2):  # The second pass removes the rounding errors of the first.
            following = unit(following - matmul(basis.T, matmul(basis, following)))
        # An exact eigenvector leaves no residual to extend the basis with.
        exact = residual <= RESOLUTION * largest
        converged = exact | ((count >= least) & (residual <= tolerance * largest))
        return _Search(basis, images, v, image, following, count, converged)

    zeros = jnp.zeros((steps, matrix.size), matrix.dtype)
    none = jnp.zeros((), jnp.int32)
    first = _Search(zeros, zeros, start, start, start, none, none > 0)
    last: _Search = jax.lax.while_loop(
        lambda search: ~search.converged & (search.products < steps), extend, first
    )
    return last.vector, last.image
