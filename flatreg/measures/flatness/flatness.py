"""Zeroth- and first-order flatness: the worst rise and the worst gradient within a ball.

    R⁰_ρ(θ) = max_{‖δ‖≤ρ} L(θ+Tδ) − L(θ),    R¹_ρ(θ) = ρ · max_{‖δ‖≤ρ} ‖T∇L(θ+Tδ)‖,    T fixed at θ.

Both maxima are found by projected gradient ascent from several starts, so both are lower bounds
that a point in the ball certifies.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import checked_scale
from flatreg._core.tree import norm
from flatreg.measures.dataset import LossFn
from flatreg.measures.flatness.ball import Ball, ascend, make_ball
from flatreg.measures.spectrum.curvature import times, widened
from flatreg.typing import Grads, Params, Scale

SEGMENT = 16  # points on the way to R⁰'s maximiser
FAR_FROM_MINIMUM = 0.05  # of ‖g‖/(ρ|λ|max); above it R¹/ρ² says little about λ_max


class Flatness(NamedTuple):
    """A lower bound of R⁰ or R¹ and the point that certifies it.

    Attributes:
      value: the best value found; at that point the loss or its gradient is really so large.
      perturbation: ε = Tδ of that point, a tree like the parameters with ‖δ‖ ≤ ρ.
      start: which start led there: 0 the gradient, 1 and 2 plus and minus the top eigenvector, then
        for R¹ the best point on the segment to R⁰'s maximiser, then random ones.
      values: what each start led to, shape (starts,); their spread tells how sure the maximum is.
      gradient_ratio: ‖Tg‖/(ρ|λ|max) at the parameters: 0 at a minimum, infinite on a slope
        without curvature.
    """

    value: jax.Array
    perturbation: Grads
    start: jax.Array
    values: jax.Array
    gradient_ratio: jax.Array


def gradient_norm(loss_fn: LossFn, params: Params, *, scale: Scale | None = None) -> jax.Array:
    """‖T∇L‖, in at least float32.

    Args:
      loss_fn: ``params -> scalar``.
      params: where the gradient is taken.
      scale: ``params -> T``, as in :func:`first_order_flatness`.

    Returns:
      A scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.gradient_norm(lambda w: jnp.sum(w**2) / 2, jnp.array([3.0, 4.0])))
      5.0
    """
    params = widened(params)
    return norm(times(checked_scale(scale, params), jax.grad(loss_fn)(params)))


def zeroth_order_flatness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: float,
    *,
    steps: int = 100,
    random_starts: int = 4,
    scale: Scale | None = None,
) -> Flatness:
    r"""R⁰: how far the loss rises within the ball of radius ρ; what SAM makes small.

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`.
      params: the centre θ of the ball.
      key: draws the random starts.
      rho: the radius, ‖δ‖ ≤ ρ, in the units of the parameters (of δ with ``scale``).
      steps: of the ascent from each start, of length 1/|λ|max of the Hessian at θ.
      random_starts: how many, beside the gradient and plus and minus the top eigenvector.
      scale: ``params -> T`` for the ellipsoid θ + Tδ of the adaptive methods.

    Returns:
      :class:`Flatness`.

    Raises:
      ValueError: if ρ is negative or there are no steps.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> worst = measures.zeroth_order_flatness(loss_fn, jnp.zeros(2), jax.random.key(0), 0.1)
      >>> print(f"{worst.value:.4f}")  # ρ²λ_max/2
      0.0150

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021.
    """
    ball = make_ball(loss_fn, params, key, rho, steps, random_starts, scale)
    rises, points = ascend(ball, ball.rise, ball.curvature, ball.rise_starts)
    # The center is in the ball, too: nothing rises by less than nothing.
    return _flatness(ball, jnp.maximum(rises, 0), jnp.where(rises[:, None] < 0, 0, points))


def first_order_flatness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: float,
    *,
    steps: int = 100,
    random_starts: int = 4,
    scale: Scale | None = None,
) -> Flatness:
    r"""R¹: ρ times the largest gradient norm within the ball of radius ρ; what GAM makes small.

    R⁰ ≤ R¹, since the loss rises no faster than its gradient allows. At a minimum R¹/ρ² → λ_max as
    ρ → 0; elsewhere it is not λ_max, and a warning says so where ‖g‖/(ρ|λ|max) exceeds 0.05.

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`.
      params: the centre θ of the ball.
      key: draws the random starts.
      rho: the radius, as in :func:`zeroth_order_flatness`.
      steps: of the ascent from each start, of length 1/λ² with the largest |λ| at θ; each costs a
        gradient and a Hessian-vector product.
      random_starts: how many, beside the gradient, plus and minus the eigenvector of the largest
        |λ|, and the best point on the segment to R⁰'s maximiser.
      scale: as in :func:`zeroth_order_flatness`.

    Returns:
      :class:`Flatness`.

    Raises:
      ValueError: if ρ is negative or there are no steps.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> worst = measures.first_order_flatness(loss_fn, jnp.zeros(2), jax.random.key(0), 0.1)
      >>> print(f"{worst.value:.4f}")  # ρ²λ_max
      0.0300

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, CVPR 2023.
    """
    ball = make_ball(loss_fn, params, key, rho, steps, random_starts, scale)
    rises, points = ascend(ball, ball.rise, ball.curvature, ball.rise_starts)
    way = jnp.linspace(0, 1, SEGMENT + 1)[:, None] * points[jnp.argmax(rises)]
    best = way[jnp.argmax(jax.lax.map(ball.half_square, way))]
    starts = jnp.insert(ball.steepness_starts, 3, best, axis=0)
    halves, points = ascend(ball, ball.half_square, (ball.curvature / ball.steepness) ** 2, starts)
    certified = _flatness(ball, ball.rho * ball.steepness * jnp.sqrt(2 * halves), points)
    ratio = certified.gradient_ratio
    if not isinstance(ratio, jax.core.Tracer) and ratio > FAR_FROM_MINIMUM:
        warnings.warn(
            f"‖g‖/(ρ|λ|max) is {ratio:.2g}: this is no minimum at the scale of ρ = {rho}, so R¹/ρ² "
            "is not λ_max; measure that by top_eigenpairs.",
            stacklevel=2,
        )
    return certified


def _flatness(ball: Ball, values: jax.Array, points: jax.Array) -> Flatness:
    start = jnp.argmax(values)
    perturbation = ball.to_perturbation(points[start])
    return Flatness(values[start], perturbation, start, values, ball.gradient_ratio)
