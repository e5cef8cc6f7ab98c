"""A PAC-Bayes bound on the expected loss, and the noise that a trained network bears."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg.measures.robustness.noise import noise_robustness
from flatreg.measures.spectrum.curvature import widened
from flatreg.measures.spectrum.trace import Estimate
from flatreg.typing import Params, Scalar, Scale


class NoiseLevel(NamedTuple):
    """The noise that a metric bears.

    Attributes:
      value: σ.
      standard_error: of σ, from that of the metric and the slope of its curve there, with the same
        draws; infinite on a plateau.
      metric: :class:`Estimate` of E_u M(θ + σTu).
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
    r"""The largest σ with E_u M(θ + σTu) ≥ M(θ) − drop, u ~ N(0, 1): how much noise θ bears.

    24 bisections of log σ, every one with the same draws of u, as in :func:`noise_robustness`: 1e-6
    of σ in the default bracket. Where the curve falls and rises again, it is one of its crossings.

    Args:
      metric_fn: ``params -> scalar``, higher is better: the accuracy, or ``lambda params:
        -loss_fn(params)``.
      params: θ.
      key: draws the noise.
      drop: ≥ 0, in the units of the metric, such as 0.1.
      bracket: the σ between which to look. Outside of it the nearer end is returned.
      draws: as in :func:`noise_robustness`, and so is ``scale``.
      scale: see there.

    Returns:
      :class:`NoiseLevel`.

    Raises:
      ValueError: if ``drop`` is negative, or ``bracket`` not 0 < low < high.

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
        raise ValueError(f"bracket must be 0 < low < high, got {bracket}: (1e-5, 10.0), say.")
    params = widened(params)
    least = metric_fn(params) - drop
    ends = jnp.log(jnp.asarray(bracket))

    def at(sigmas: jax.Array) -> Estimate:
        return noise_robustness(metric_fn, params, key, sigmas, draws=draws, scale=scale)

    def halve(_: int, ends: jax.Array) -> jax.Array:
        middle = jnp.mean(ends)
        borne = at(jnp.exp(middle)[None]).value[0] >= least
        return jnp.where(borne, ends.at[0].set(middle), ends.at[1].set(middle))

    sigma = jnp.exp(jax.lax.fori_loop(0, 24, halve, ends)[0])
    below, there, above = zip(*at(sigma * jnp.array([0.9, 1.0, 1.1])), strict=True)
    slope = (above[0] - below[0]) / (0.2 * sigma)
    error = jnp.where(slope == 0, jnp.inf, there[1] / jnp.abs(slope))
    return NoiseLevel(sigma, error, Estimate(*there))


def pacbayes_bound(
    expected_loss: Scalar, kl: Scalar, *, n: int, delta: float, loss_range: tuple[float, float]
) -> jax.Array:
    r"""E L(θ+u) ≤ E L̂(θ+u) + (b−a)√((KL + log(2√n/δ))/(2n)), for a loss in [a, b] (McAllester).

    Holds with probability 1 − δ over n independent examples and for all noise at once, if the prior
    (τ) was chosen without them: of the test loss under noise, not of that at θ.

    Args:
      expected_loss: E L̂(θ+u), or what bounds it, such as :func:`expected_loss_bound`.
      kl: such as :func:`uniform_kl`.
      n: how many training examples.
      delta: δ, in (0, 1).
      loss_range: (a, b); the cross-entropy has none unless it is clipped.

    Raises:
      ValueError: if n < 1, δ is outside of (0, 1), or a ≥ b.

    Examples:
      >>> from flatreg import measures
      >>> bound = measures.pacbayes_bound(0.1, 50.0, n=10_000, delta=0.05, loss_range=(0.0, 1.0))
      >>> print(f"{bound:.4f}")
      0.1540

    References:
      Maurer, `A Note on the PAC Bayesian Theorem <https://arxiv.org/abs/cs/0411099>`_, 2004.
    """
    least, most = loss_range
    if n < 1 or not 0 < delta < 1 or not least < most:
        raise ValueError(f"n ≥ 1, 0 < δ < 1 and a < b, not {n=}, {delta=}, {loss_range=}.")
    return expected_loss + (most - least) * jnp.sqrt((kl + math.log(2 * n**0.5 / delta)) / (2 * n))
