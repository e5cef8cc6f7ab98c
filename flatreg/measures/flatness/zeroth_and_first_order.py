"""Zeroth-order flatness R⁰: how far the loss rises within a ball of weights.

    R⁰_ρ(θ) = max_{‖δ‖≤ρ} L(θ+Tδ) − L(θ),    T fixed at θ.

Projected gradient ascent from several starts approximates the maximum. The result is a lower bound
on R⁰ that is attained at a point of the ball.
"""

import jax
import jax.numpy as jnp

from flatreg.measures.dataset import LossFn
from flatreg.measures.flatness.ball_ascent import Ball, Flatness, ascend, ball_around, best_of
from flatreg.measures.spectrum.curvature import Curvature
from flatreg.typing import Params, Scalar, Scale


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
    return zeroth_order(ball, *highest_rises(ball))


def zeroth_order(ball: Ball, rises: jax.Array, points: jax.Array) -> Flatness:
    """Returns R⁰ from what the ascents of the loss have reached."""
    # The center belongs to the ball, so the maximum is at least 0.
    return best_of(ball, jnp.maximum(rises, 0), jnp.where(rises[:, None] < 0, 0, points))


def highest_rises(ball: Ball) -> tuple[jax.Array, jax.Array]:
    """Returns the largest L(θ+Tδ) − L(θ) that the ascent from each start reaches, and its δ."""
    return ascend(ball, ball.rise, ball.curvature, ball.rise_starts)
