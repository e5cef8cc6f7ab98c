r"""The local learning coefficient, by Langevin chains that a quadratic term keeps near θ.

The chains sample the density

    p(w) ∝ exp(−nβ(L(w) − L(θ)) − γ‖w − θ‖²/2),    β = 1/log n,

and the local learning coefficient is estimated by the mean of nβ(L(w) − L(θ)). A Langevin step is a
step of gradient descent with noise. The step size is tuned before the first draw. Each step is
accepted or rejected by the rule of Metropolis and Hastings, so that neither the step size nor the
limit on the length of a gradient step changes the density (MALA and MALTA).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from flatreg._core.checks import check_key, is_number
from flatreg._core.tree import matmul, norm
from flatreg.measures.checks import check_loss, check_numbers
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params, Scalar

ACCEPTANCE = 0.574  # the optimal share of accepted Langevin steps in many dimensions
LARGEST_RHAT = 1.05
FEWEST_EFFECTIVE_DRAWS = 200
ACCEPTABLE = (0.2, 0.9)  # the share of accepted steps with which the chains move well


class LearningCoefficient(NamedTuple):
    """An estimate of the local learning coefficient, and the diagnostics of the chains.

    Attributes:
      value: the mean of nβ(L(w) − L(θ)) over all draws.
      standard_error: the standard error over the means of the chains.
      converged: whether ``rhat`` is at most 1.05, there are at least 200 ``effective_draws``, and
        ``acceptance`` is in [0.2, 0.9]. If it is False, ``value`` and ``standard_error`` are not
        reliable. If it is True, the draws show no sign of a problem, which is not a proof.
      rhat: the split R̂ of Gelman and Rubin, which compares the halves of all chains. It is close to
        1 if they agree.
      effective_draws: the number of independent draws that would give the same precision.
      acceptance: the share of accepted steps.
      trace: nβ(L(w) − L(θ)) for each draw, shape (chains, draws).
    """

    value: jax.Array
    standard_error: jax.Array
    converged: jax.Array
    rhat: jax.Array
    effective_draws: jax.Array
    acceptance: jax.Array
    trace: jax.Array


def local_learning_coefficient(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    *,
    n: Scalar,
    localization: Scalar = 1.0,
    chains: int = 8,
    burn_in: int = 500,
    draws: int = 1000,
) -> LearningCoefficient:
    r"""The local learning coefficient λ of a minimum, which measures how fast its basin widens.

    The volume of weights whose loss is within ε of the minimum scales as ε^λ. A regular minimum of
    d weights has λ = d/2. A degenerate one has less: λ = 1/4 for w⁴. The estimate is the mean of
    nβ(L(w) − L(θ)) over Langevin chains that start at θ, with β = 1/log n.

    The result describes the loss at the scale of n. It approaches λ as n grows, with two known
    errors. The localization lowers the share of a direction with curvature h by the factor
    1/(1 + γ/(nβh)). If the set of minima has crossings at θ, such as w₁²w₂² at zero, where the
    multiplicity is m = 2, the mean is below λ by (m − 1) divided by the logarithm of a multiple of
    n, which is 15% to 30% in practice.

    The cost is (``burn_in`` + ``draws``) gradients per chain. The chains run one after another.

    Args:
      loss_fn: the loss, ``params -> scalar``, the mean over the n examples, such as a
        :func:`dataset_loss`.
      params: θ, a minimum of the loss.
      key: the random key for the chains.
      n: the number of examples, above 1.
      localization: γ > 0. It should be small against nβ times the curvatures of interest.
      chains: the number of chains, at least 2.
      burn_in: the number of steps per chain before the first draw, during which the step size is
        tuned.
      draws: the number of draws per chain, at least 4.

    Returns:
      :class:`LearningCoefficient`. Check ``converged`` before you use the value.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if n is not above 1, or there are too few chains or draws.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> found = measures.local_learning_coefficient(
      ...     lambda w: jnp.sum(w**2), jnp.zeros(4), jax.random.key(0), n=1000
      ... )
      >>> print(f"{found.value:.1f}", found.converged)  # d/2
      2.0 True

    References:
      Lau et al., `The Local Learning Coefficient: A Singularity-Aware Complexity Measure
      <https://arxiv.org/abs/2308.12108>`_, AISTATS 2025.
    """
    check_loss("local_learning_coefficient", loss_fn, params)
    check_key(key, "local_learning_coefficient(loss_fn, params, jax.random.key(0), n=1000)")
    check_numbers(n=n, localization=localization)
    if (is_number(n) and n <= 1) or (is_number(localization) and localization == 0):
        raise ValueError(
            f"n must be above 1 and localization above 0, got {n} and {localization}: for example, "
            "write n=len(labels), localization=1.0."
        )
    if chains < 2 or draws < 4 or burn_in < 0:
        raise ValueError(
            "local_learning_coefficient needs chains ≥ 2, draws ≥ 4 and burn_in ≥ 0, got "
            f"{chains}, {draws} and {burn_in}: for example, write chains=8, burn_in=500, "
            "draws=1000."
        )
    params = in_float32_or_wider(params)
    center, to_tree = ravel_pytree(params)
    loss = jnp.asarray(loss_fn(params))
    temperature = jnp.asarray(n, center.dtype) / jnp.log(jnp.asarray(n, center.dtype))  # nβ

    def energy(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The negative logarithm of the density, and nβ(L(w) − L(θ))."""
        rise = temperature * (loss_fn(to_tree(w)) - loss).astype(w.dtype)
        offset = w - center
        return rise + localization * matmul(offset, offset) / 2, rise

    first_size = 1 / (temperature + localization)
    run = _Langevin(energy, center, jnp.asarray(first_size, center.dtype), burn_in, draws)
    trace, accepted = jax.lax.map(run.chain, jax.random.split(key, chains))
    means = jnp.mean(trace, axis=1)
    rhat, effective_draws = _diagnostics(trace)
    acceptance = jnp.mean(accepted)
    converged = (
        (rhat <= LARGEST_RHAT)
        & (effective_draws >= FEWEST_EFFECTIVE_DRAWS)
        & (acceptance >= ACCEPTABLE[0])
        & (acceptance <= ACCEPTABLE[1])
    )
    return LearningCoefficient(
        value=jnp.mean(means),
        standard_error=jnp.std(means, ddof=1) / chains**0.5,
        converged=converged,
        rhat=rhat,
        effective_draws=effective_draws,
        acceptance=acceptance,
        trace=trace,
    )


class _State(NamedTuple):
    """The loop carry of a chain.

    Attributes:
      w: the current weights as a vector.
      energy: the negative logarithm of the density at ``w``.
      gradient: its gradient.
      rise: nβ(L(w) − L(θ)).
      log_size: the logarithm of the step size.
    """

    w: jax.Array
    energy: jax.Array
    gradient: jax.Array
    rise: jax.Array
    log_size: jax.Array


class _Langevin(NamedTuple):
    """A Metropolis-adjusted Langevin sampler.

    Attributes:
      energy: ``w -> (energy, rise)``.
      center: the start of the chains.
      first_size: the step size before it is tuned.
      burn_in: the number of steps during which the step size is tuned.
      draws: the number of steps after that.
    """

    energy: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    center: jax.Array
    first_size: jax.Array
    burn_in: int
    draws: int

    def chain(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The rises of all draws, and the share of accepted steps among them."""

        def step(state: _State, i: jax.Array) -> tuple[_State, tuple[jax.Array, jax.Array]]:
            proposed, probability, uniform = self._propose(state, jax.random.fold_in(key, i))
            accepted = uniform < probability
            state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposed, state)
            # Robbins and Monro: the changes of the step size decrease and end with the burn-in.
            rate = jnp.where(i < self.burn_in, (1 + i) ** -0.5, 0)
            log_size = state.log_size + rate * (probability - ACCEPTANCE)
            return state._replace(log_size=log_size), (state.rise, accepted)

        (energy, rise), gradient = jax.value_and_grad(self.energy, has_aux=True)(self.center)
        first = _State(self.center, energy, gradient, rise, jnp.log(self.first_size))
        steps = jnp.arange(self.burn_in + self.draws)
        rises, accepted = jax.lax.scan(step, first, steps)[1]
        return rises[self.burn_in :], jnp.mean(accepted[self.burn_in :].astype(rises.dtype))

    def _drift(self, gradient: jax.Array, size: jax.Array) -> jax.Array:
        """The step along the gradient, at most as long as the noise usually is.

        Where the density falls faster than a Gaussian, as for w⁴, a longer step would overshoot.
        """
        longest = jnp.sqrt(size * gradient.size)
        return gradient * jnp.minimum(size / 2, longest / (1e-30 + norm(gradient)))

    def _propose(self, state: _State, key: jax.Array) -> tuple[_State, jax.Array, jax.Array]:
        """A Langevin step, the probability of accepting it, and a uniform random number."""
        noise_key, uniform_key = jax.random.split(key)
        size = jnp.exp(state.log_size)
        noise = jax.random.normal(noise_key, state.w.shape, state.w.dtype)
        w = state.w - self._drift(state.gradient, size) + jnp.sqrt(size) * noise
        (energy, rise), gradient = jax.value_and_grad(self.energy, has_aux=True)(w)
        # The step back from w would need this noise.
        back = (state.w - w + self._drift(gradient, size)) / jnp.sqrt(size)
        log_ratio = state.energy - energy + (matmul(noise, noise) - matmul(back, back)) / 2
        probability = jnp.exp(jnp.minimum(log_ratio, 0))
        probability = jnp.where(jnp.isnan(probability), 0, probability)
        uniform = jax.random.uniform(uniform_key, (), state.w.dtype)
        return _State(w, energy, gradient, rise, state.log_size), probability, uniform


def _diagnostics(trace: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split R̂ and the number of effective draws, from a trace of shape (chains, draws).

    If the trace is constant, R̂ is infinite and the number of effective draws is zero.

    References:
      Gelman et al., Bayesian Data Analysis, 3rd edition, sections 11.4 and 11.5.
    """
    length = trace.shape[1] // 2
    halves = jnp.concatenate([trace[:, :length], trace[:, -length:]])
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1))
    between = jnp.var(jnp.mean(halves, axis=1), ddof=1)
    pooled = within * (length - 1) / length + between
    # The autocovariances of each half, by a Fourier transform without wrap-around.
    centered = halves - jnp.mean(halves, axis=1, keepdims=True)
    power = jnp.abs(jnp.fft.rfft(centered, 2 * length)) ** 2
    covariances = jnp.mean(jnp.fft.irfft(power, 2 * length)[:, :length], axis=0) / length
    correlations = 1 - (within - covariances) / pooled
    # Geyer: sums of neighbors are positive; the first that is not ends the series.
    sums = jnp.sum(correlations[: length // 2 * 2].reshape(-1, 2), axis=1)
    sums = jnp.where(jnp.cumprod(sums > 0), sums, 0)
    time = jnp.maximum(2 * jnp.sum(sums) - 1, 1 / jnp.log10(1.0 * halves.size))
    moves = (within > 0) & jnp.isfinite(pooled)
    rhat = jnp.sqrt(pooled / jnp.where(moves, within, 1))
    return jnp.where(moves, rhat, jnp.inf), jnp.where(moves, halves.size / time, 0)
