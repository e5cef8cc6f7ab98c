"""The PAC-Bayes σ: the largest weight noise that a trained network tolerates."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg.measures.checks import check_loss
from flatreg.measures.estimate import Estimate
from flatreg.measures.robustness.weight_noise import noise_robustness
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params, Scalar, Scale

BISECTIONS = 24


class NoiseLevel(NamedTuple):
    """The largest weight noise at which a metric stays within a given drop.

    Attributes:
      value: the noise level σ.
      standard_error: the standard error of σ. It is the standard error of the metric at σ, divided
        by the absolute slope of the metric with respect to σ, both computed from the same draws. It
        is infinite if the slope is zero.
      metric: an :class:`Estimate` of the metric E_u M(θ + σTu) at σ = ``value``.
    """

    value: jax.Array
    standard_error: jax.Array
    metric: Estimate


def pacbayes_sigma(
    metric_fn: Callable[[Params], jax.Array],
    params: Params,
    key: jax.Array,
    drop: Scalar,
    *,
    bracket: tuple[float, float] = (1e-5, 10.0),
    draws: int = 32,
    scale: Scale | None = None,
) -> NoiseLevel:
    r"""The largest noise level σ at which a metric drops by at most a given amount.

    σ is the solution of E_u M(θ + σTu) = M(θ) − drop with u ~ N(0, 1), found by 24 bisection steps
    in log σ, all of which use the same draws of u. With the default bracket, this determines σ to a
    relative accuracy of 1e-6. If the metric falls and then rises again as σ grows, the equation has
    several solutions, and the result is one of them.

    Args:
      metric_fn: the metric M, ``params -> scalar``, for which higher is better: the accuracy, or
        ``lambda params: -loss_fn(params)``.
      params: θ, the trained weights.
      key: the random key for the noise.
      drop: the tolerated drop, at least 0, in the units of the metric, for example 0.1.
      bracket: the interval (low, high) in which to look for σ. If the solution lies outside it, the
        nearer end is returned.
      draws: the number of noise draws, at least 2.
      scale: ``params -> T`` with one factor per weight. If None, every weight gets noise of the
        same size. ``lambda params: jax.tree.map(jnp.abs, params)`` makes the noise proportional to
        each weight.

    Returns:
      :class:`NoiseLevel`.

    Raises:
      ValueError: if ``drop`` is negative, ``bracket`` is not 0 < low < high, or ``draws`` is below
        2.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> metric_fn = lambda w: 1.0 - jnp.sum(w**2) / 2  # drops by 1000 σ²/2
      >>> noise = measures.pacbayes_sigma(metric_fn, jnp.zeros(1000), jax.random.key(0), 0.05)
      >>> print(f"{noise.value:.3f}")
      0.010

    References:
      Jiang et al., `Fantastic Generalization Measures and Where to Find Them
      <https://arxiv.org/abs/1912.02178>`_, ICLR 2020.
    """
    check_nonnegative(drop=drop)
    low, high = bracket
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"bracket must be 0 < low < high, got {bracket}: for example, write "
            "bracket=(1e-5, 10.0)."
        )
    params = in_float32_or_wider(params)
    check_loss("pacbayes_sigma", metric_fn, params)
    least = metric_fn(params) - drop

    def metric_at(sigmas: jax.Array) -> Estimate:
        return noise_robustness(metric_fn, params, key, sigmas, draws=draws, scale=scale)

    def bisect(_: int, ends: jax.Array) -> jax.Array:
        middle = jnp.mean(ends)
        tolerated = metric_at(jnp.exp(middle)[None]).value[0] >= least
        return jnp.where(tolerated, ends.at[0].set(middle), ends.at[1].set(middle))

    ends = jax.lax.fori_loop(0, BISECTIONS, bisect, jnp.log(jnp.asarray(bracket)))
    sigma = jnp.exp(ends[0])
    metric = metric_at(sigma * jnp.array([0.9, 1.0, 1.1]))
    slope = (metric.value[2] - metric.value[0]) / (0.2 * sigma)
    at_sigma = Estimate(metric.value[1], metric.standard_error[1])
    error = jnp.where(slope == 0, jnp.inf, at_sigma.standard_error / jnp.abs(slope))
    return NoiseLevel(sigma, error, at_sigma)
