"""The loss, the accuracy or any other metric under random noise on the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import checked_scale
from flatreg.measures.checks import check_loss, check_sequence
from flatreg.measures.dataset import LossFn
from flatreg.measures.estimate import Estimate
from flatreg.measures.weights import in_float32_or_wider, times
from flatreg.typing import Params, Scalar, Scale


def noise_robustness(
    metric_fn: Callable[[Params], jax.Array],
    params: Params,
    key: jax.Array,
    sigmas: jax.Array,
    *,
    draws: int = 32,
    scale: Scale | None = None,
) -> Estimate:
    r"""The mean of a metric under Gaussian weight noise, at each of several noise levels.

    For each σ, this is E_u M(θ + σTu), with an independent u ~ N(0, 1) per weight. All σ use the
    same draws of u, which makes the curve over σ smooth and two networks comparable.

    Args:
      metric_fn: the metric M, ``params -> scalar``, for example the loss or the accuracy.
      params: θ, the trained weights.
      key: the random key for the noise.
      sigmas: the standard deviations σ, shape (m,), in units of the weights, or relative to T if
        ``scale`` is given.
      draws: the number of noise draws, at least 2.
      scale: ``params -> T`` with one factor per weight. If None, every weight gets noise of the
        same size. ``lambda params: jax.tree.map(jnp.abs, params)`` makes the noise proportional to
        each weight.

    Returns:
      :class:`Estimate` with the means and their standard errors, shape (m,).

    Raises:
      TypeError: if the metric is not a floating-point scalar.
      ValueError: if ``draws`` is below 2, or ``sigmas`` is a single number.

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
        raise ValueError(
            f"draws must be at least 2 to give a standard error, got {draws}: for example, write "
            "draws=32."
        )
    check_sequence("sigmas", sigmas, "jnp.array([0.1])")
    params = in_float32_or_wider(params)
    factors = checked_scale(scale, params)
    sigmas = jnp.asarray(sigmas)

    def metrics(key: jax.Array) -> jax.Array:
        noise = times(factors, optax.tree.random_like(key, params))

        def metric_at(sigma: jax.Array) -> jax.Array:
            return metric_fn(
                jax.tree.map(lambda w, u: w + sigma.astype(w.dtype) * u, params, noise)
            )

        values: jax.Array = jax.lax.map(metric_at, sigmas)
        return values

    values = jax.lax.map(metrics, jax.random.split(key, draws))
    return Estimate(jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / draws**0.5)


def expected_sharpness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    sigma: Scalar,
    *,
    draws: int = 32,
    scale: Scale | None = None,
) -> Estimate:
    r"""Expected sharpness, the mean rise of the loss under Gaussian weight noise.

    E_u L(θ + σTu) − L(θ) ≈ σ² tr(THT)/2, with an independent u ~ N(0, 1) per weight.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the trained weights.
      key: the random key for the noise.
      sigma: σ, the standard deviation, in units of the weights, or relative to T if ``scale`` is
        given.
      draws: the number of noise draws, at least 2.
      scale: ``params -> T`` with one factor per weight. If None, every weight gets noise of the
        same size. ``lambda params: jax.tree.map(jnp.abs, params)`` makes the noise proportional to
        each weight.

    Returns:
      :class:`Estimate` of a scalar.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if ``draws`` is below 2.

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
    check_loss("expected_sharpness", loss_fn, params)
    loss = loss_fn(in_float32_or_wider(params))
    sigmas = jnp.asarray([sigma])
    curve = noise_robustness(
        lambda params: loss_fn(params) - loss, params, key, sigmas, draws=draws, scale=scale
    )
    return Estimate(curve.value[0], curve.standard_error[0])
