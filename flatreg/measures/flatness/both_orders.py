"""Zeroth-order and first-order flatness in one search.

The search for R¹ starts from the maximizer of R⁰, so it contains the search for R⁰.
"""

import jax

from flatreg.measures.dataset import LossFn
from flatreg.measures.flatness.ball_ascent import Flatness, ball_around
from flatreg.measures.flatness.first_order import first_order, warn_far_from_minimum
from flatreg.measures.flatness.zeroth_order import highest_rises, zeroth_order
from flatreg.measures.spectrum.curvature import Curvature
from flatreg.typing import Params, Scalar, Scale


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
    same arguments. Call ``jax.jit`` on the function to compile it faster than step by step.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the center of the ball.
      key: the random key for the random starts.
      rho: ρ ≥ 0, the radius of the ball in units of the parameters, or of δ if ``scale`` is given.
      steps: the number of ascent steps from each start, at least 1.
      random_starts: the number of random starts.
      curvature: how to compute the products with the Hessian. If None, by :func:`hessian`.
      scale: ``params -> T`` with one factor per weight, which gives the ellipsoid θ + Tδ of the
        adaptive methods. If None, T = 1.

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
    climbed = highest_rises(ball)
    first = first_order(ball, *climbed)
    warn_far_from_minimum(first, rho)
    return zeroth_order(ball, *climbed), first
