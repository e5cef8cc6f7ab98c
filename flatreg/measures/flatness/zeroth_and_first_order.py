"""Zeroth-order flatness R⁰ and first-order flatness R¹: the loss and its gradient within a ball.

    R⁰_ρ(θ) = max_{‖δ‖≤ρ} L(θ+Tδ) − L(θ)
    R¹_ρ(θ) = ρ · max_{‖δ‖≤ρ} ‖T∇L(θ+Tδ)‖,    both with T fixed at θ.

Projected gradient ascent from several starts approximates each maximum. The result is a lower bound
that is attained at a point of the ball. The search for R¹ starts from the maximizer of R⁰, among
other points, so it contains the search for R⁰.
"""

import warnings

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul
from flatreg.measures.dataset import LossFn
from flatreg.measures.flatness.ball_ascent import (
    Ball,
    Flatness,
    Peak,
    ascend,
    ball_around,
    best_of,
)
from flatreg.measures.spectrum.curvature import Curvature
from flatreg.typing import Params, Scalar, Scale

SEGMENT = 16  # the number of intervals on the segment from θ to the maximizer of R⁰
DIRECTED = 3  # the number of starts along the gradient, plus and minus the eigenvector
FAR_FROM_MINIMUM = 0.05  # If ‖T∇L‖/(ρ|λ|max) is larger, R¹/ρ² says little about λ_max.


def zeroth_order_flatness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: Scalar,
    *,
    steps: int = 100,
    random_starts: int = 4,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Flatness:
    r"""Zeroth-order flatness R⁰: the largest rise of the loss in a ball, which SAM reduces.

    R⁰_ρ(θ) = max_{‖δ‖≤ρ} L(θ+Tδ) − L(θ). The result is the largest value that projected gradient
    ascent finds, so it is a lower bound on R⁰.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the center of the ball.
      key: the random key for the random starts.
      rho: ρ ≥ 0, the radius of the ball in units of the parameters, or of δ if ``scale`` is given.
      steps: the number of ascent steps from each start, at least 1. The step size is 1/\|λ\|max,
        where \|λ\|max is the largest magnitude of an eigenvalue of the Hessian at θ.
      random_starts: the number of random starts, in addition to the starts along the gradient and
        along plus and minus the top eigenvector.
      curvature: how to compute the products with the Hessian, which give the starts along its
        eigenvectors. If None, by :func:`hessian`. For a loss without forward-mode derivatives, pass
        ``functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)``. The choice affects only
        where the search goes, because the value is computed from the loss alone.
      scale: ``params -> T`` with one factor per weight, which gives the ellipsoid θ + Tδ of the
        adaptive methods. If None, T = 1.

    Returns:
      :class:`Flatness`.

    Raises:
      ValueError: if ρ is negative or ``steps`` is below 1.

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
    ball = ball_around(loss_fn, params, key, rho, steps, random_starts, curvature, scale)
    peaks = jax.lax.map(
        lambda start: ascend(ball, ball.rise, ball.curvature, start, ball.steps), ball.rise_starts
    )
    return _zeroth_order(ball, peaks)


def first_order_flatness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: Scalar,
    *,
    steps: int = 100,
    random_starts: int = 4,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Flatness:
    r"""First-order flatness R¹: ρ times the largest gradient norm in a ball, which GAM reduces.

    R¹_ρ(θ) = ρ · max_{‖δ‖≤ρ} ‖T∇L(θ+Tδ)‖. The result is the largest value that projected gradient
    ascent finds, so it is a lower bound on R¹.

    R⁰ ≤ R¹, because the rise of the loss is at most ρ times the largest gradient norm. At a
    minimum, R¹/ρ² → λ_max as ρ → 0. Away from a minimum, R¹/ρ² is not λ_max, and a warning is
    issued if ‖T∇L(θ)‖/(ρ\|λ\|max) exceeds 0.05 (unless the function is traced).

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the center of the ball.
      key: the random key for the random starts.
      rho: ρ ≥ 0, the radius of the ball in units of the parameters, or of δ if ``scale`` is given.
      steps: the number of ascent steps from each start, at least 1. The step size is 1/λ², where λ
        is the eigenvalue of largest magnitude of the Hessian at θ. Each step costs one gradient and
        one Hessian-vector product.
      random_starts: the number of random starts, in addition to the starts along the gradient,
        along plus and minus the eigenvector of the largest \|λ\|, and at the best point on the
        segment from θ to the maximizer of R⁰.
      curvature: how to compute the products with the Hessian, as for :func:`zeroth_order_flatness`.
        They give the starts along its eigenvectors and the direction of each step, but the value is
        computed from the gradient alone.
      scale: ``params -> T`` with one factor per weight, for the ellipsoid θ + Tδ. If None, T = 1.

    Returns:
      :class:`Flatness`.

    Raises:
      ValueError: if ρ is negative or ``steps`` is below 1.

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
    ball = ball_around(loss_fn, params, key, rho, steps, random_starts, curvature, scale)
    found = _both_orders(ball)[1]
    _warn_far_from_minimum(found, rho)
    return found


def zeroth_and_first_order_flatness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: Scalar,
    *,
    steps: int = 100,
    random_starts: int = 4,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> tuple[Flatness, Flatness]:
    r"""R⁰ and R¹ in one search, which compiles once and climbs to the maximum of R⁰ once.

    The results are those of :func:`zeroth_order_flatness` and :func:`first_order_flatness` with the
    same arguments. Under ``jax.jit``, the search compiles faster than operation by operation.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the center of the ball.
      key: the random key for the random starts.
      rho: ρ ≥ 0, the radius of the ball in units of the parameters, or of δ if ``scale`` is given.
      steps: the number of ascent steps from each start, at least 1.
      random_starts: the number of random starts, at least 0.
      curvature: how to compute the products with the Hessian. If None, by :func:`hessian`.
      scale: ``params -> T`` with one factor per weight, for the ellipsoid θ + Tδ. If None, T = 1.

    Returns:
      R⁰ and R¹, each a :class:`Flatness`.

    Raises:
      ValueError: if ρ is negative or ``steps`` is below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> zeroth, first = measures.zeroth_and_first_order_flatness(
      ...     loss_fn, jnp.zeros(2), jax.random.key(0), 0.1
      ... )
      >>> print(f"{zeroth.value:.4f} {first.value:.4f}")  # ρ²λ_max/2 and ρ²λ_max
      0.0150 0.0300

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, CVPR 2023.
    """
    ball = ball_around(loss_fn, params, key, rho, steps, random_starts, curvature, scale)
    zeroth, first = _both_orders(ball)
    _warn_far_from_minimum(first, rho)
    return zeroth, first


def _zeroth_order(ball: Ball, peaks: Peak) -> Flatness:
    """Returns R⁰, given what the ascents of the loss have reached."""
    # The center belongs to the ball, so the maximum is at least 0.
    points = jnp.where(peaks.value[:, None] < 0, 0, peaks.point)
    return best_of(ball, Peak(jnp.maximum(peaks.value, 0), points))


def _both_orders(ball: Ball) -> tuple[Flatness, Flatness]:
    """Returns R⁰ and R¹.

    One loop contains the ascents of the loss, the search for the largest gradient on the segment
    from θ to the maximizer of R⁰, and the ascents of the gradient norm. The program contains the
    gradient and the product with the Hessian only once each, so it compiles faster.
    """
    # The start at the best point on the segment is known only when the others have been searched.
    unknown = jnp.zeros((SEGMENT + 1, ball.rise_starts.shape[1]), ball.rise_starts.dtype)
    steepness_starts = jnp.insert(ball.steepness_starts, DIRECTED, 0, axis=0)
    starts = jnp.concatenate([ball.rise_starts, unknown, steepness_starts])
    segment = len(ball.rise_starts)  # the index at which the points of the segment begin
    first_order = segment + SEGMENT + 1
    bend = (ball.curvature / ball.steepness) ** 2

    def run(i: jax.Array, peaks: Peak) -> Peak:
        highest = peaks.point[jnp.argmax(peaks.value[:segment])]
        steepest = peaks.point[segment + jnp.argmax(peaks.value[segment:first_order])]
        on_segment = (i >= segment) & (i < first_order)
        fraction = ((i - segment) / SEGMENT).astype(starts.dtype)
        start = jnp.where(i == first_order + DIRECTED, steepest, starts[i])
        start = jnp.where(on_segment, fraction * highest, start)

        def height(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The rise of the loss, or ½‖T∇L/s‖², whose gradient is T∇²L T²∇L/s²."""
            rise, slope = ball.rise(delta)
            scaled = slope / ball.steepness
            uphill = jax.lax.cond(
                i >= first_order,
                lambda: ball.product(delta, scaled) / ball.steepness,
                lambda: slope,
            )
            return jnp.where(i < segment, rise, matmul(scaled, scaled) / 2), uphill

        steps = jnp.where(on_segment, 0, ball.steps)
        peak = ascend(ball, height, jnp.where(i < segment, ball.curvature, bend), start, steps)
        return Peak(peaks.value.at[i].set(peak.value), peaks.point.at[i].set(peak.point))

    none = Peak(jnp.zeros(len(starts), starts.dtype), jnp.zeros_like(starts))
    peaks: Peak = jax.lax.fori_loop(0, len(starts), run, none)
    zeroth = Peak(peaks.value[:segment], peaks.point[:segment])
    norms = ball.rho * ball.steepness * jnp.sqrt(2 * peaks.value[first_order:])
    return _zeroth_order(ball, zeroth), best_of(ball, Peak(norms, peaks.point[first_order:]))


def _warn_far_from_minimum(found: Flatness, rho: Scalar) -> None:
    """Warns the caller's caller if R¹/ρ² is not λ_max, unless the function is traced."""
    ratio = found.gradient_ratio
    if not isinstance(ratio, jax.core.Tracer) and ratio > FAR_FROM_MINIMUM:
        warnings.warn(
            f"‖g‖/(ρ|λ|max) is {ratio:.2g}: at the scale of ρ = {rho} these parameters are not a "
            "minimum, so R¹/ρ² is not λ_max. To measure λ_max, call top_eigenpairs.",
            stacklevel=3,
        )
