"""What noise on the weights does to the loss, the accuracy, or any other metric."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import checked_scale
from flatreg.measures.dataset import LossFn
from flatreg.measures.inputs import check_loss, check_sequence
from flatreg.measures.spectrum.curvature import times, widened
from flatreg.measures.spectrum.trace import Estimate
from flatreg.typing import Params, Scale


def noise_robustness(
    metric_fn: Callable[[Params], jax.Array],
    params: Params,
    key: jax.Array,
    sigmas: jax.Array,
    *,
    draws: int = 32,
    scale: Scale | None = None,
) -> Estimate:
    r"""E_u M(θ + σTu) for each σ, with u ~ N(0, 1) a weight: how a metric bears noise.

    All σ see the same draws u, so that the curve over σ is smooth and two networks can be compared.

    Args:
      metric_fn: ``params -> scalar``: the loss, or the accuracy.
      params: the trained weights θ.
      key: draws the noise.
      sigmas: the standard deviations, shape (m,); in the units of the weights, or of T.
      draws: how many noises, at least 2.
      scale: ``params -> T``. None is additive noise; ``lambda params: jax.tree.map(jnp.abs,
        params)`` is noise relative to each weight.

    Returns:
      :class:`Estimate` of means and standard errors, shape (m,).

    Raises:
      TypeError: if the metric is no floating-point scalar.
      ValueError: with fewer than two draws, or if ``sigmas`` is one number.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(w**2) / 2
      >>> curve = measures.noise_robustness(
      ...     loss_fn, jnp.zeros(100), jax.random.key(0), jnp.array([0.0, 0.1, 0.2])
      ... )  # σ² tr H / 2
      >>> print([f"{mean:.1f}" for mean in curve.value])
      ['0.0', '0.5', '2.0']
    """
    check_loss("noise_robustness", metric_fn, params)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for a standard error, got {draws}.")
    check_sequence("sigmas", sigmas, "jnp.array([0.1])")
    params = widened(params)
    factors = checked_scale(scale, params)
    sigmas = jnp.asarray(sigmas)

    def at(key: jax.Array) -> jax.Array:
        noise = times(factors, optax.tree.random_like(key, params))

        def noisy(sigma: jax.Array) -> jax.Array:
            return metric_fn(
                jax.tree.map(lambda w, u: w + sigma.astype(w.dtype) * u, params, noise)
            )

        values: jax.Array = jax.lax.map(noisy, sigmas)
        return values

    values = jax.lax.map(at, jax.random.split(key, draws))
    return Estimate(jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / draws**0.5)


def expected_sharpness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    sigma: float,
    *,
    draws: int = 32,
    scale: Scale | None = None,
) -> Estimate:
    r"""E_u L(θ + σTu) − L(θ): the mean rise of the loss under Gaussian noise; ≈ σ² tr(THT)/2.

    Args:
      loss_fn: ``params -> scalar``.
      params: as in :func:`noise_robustness`, and so is all that follows.
      key: see there.
      sigma: one standard deviation.
      draws: see there.
      scale: see there.

    Returns:
      :class:`Estimate` of two scalars.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: 1.0 + jnp.sum(w**2) / 2
      >>> rise = measures.expected_sharpness(loss_fn, jnp.zeros(100), jax.random.key(0), 0.1)
      >>> print(bool(abs(rise.value - 0.5) < 4 * rise.standard_error))
      True

    References:
      Neyshabur et al., `Exploring Generalization in Deep Learning
      <https://arxiv.org/abs/1706.08947>`_, NeurIPS 2017.
    """
    loss = loss_fn(widened(params))
    sigmas = jnp.asarray([sigma])
    curve = noise_robustness(
        lambda params: loss_fn(params) - loss, params, key, sigmas, draws=draws, scale=scale
    )
    return Estimate(curve.value[0], curve.standard_error[0])
