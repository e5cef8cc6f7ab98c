r"""Critical sharpness: the step at which the loss rises along an update, from forward passes only.

The slope of a chord, h(η) = (L(θ+ηu) − L(θ))/η, is negative as long as the loss has not risen, and
its root is η_c. On a quadratic loss h is linear in η, so one secant finds the root exactly. In
general, trials at growing or shrinking η bracket the root, and secants between the ends of the
bracket narrow it (the Illinois method).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import alike
from flatreg.measures.checks import check_loss, check_numbers
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Grads, Params, Scalar

MOST_TRIALS = 7  # One more forward pass computes L(θ).
TOLERANCE = 4e-3  # of |L(θ+ηu) − L(θ)| at the root, relative to the largest decrease
JUMP = 5.0  # the factor from one trial to the next before there is a bracket
NEAR = 1.25  # the factor after a trial that is almost at the root
FARTHEST = 100.0  # the largest factor by which a secant may lead out of the trials so far
STEEPEST = 10.0  # the largest ratio of the slopes at the two ends that a secant uses


class _End(NamedTuple):
    """One end of the bracket: a trial η, and the slope h there."""

    eta: jax.Array
    slope: jax.Array


class _Search(NamedTuple):
    """The loop carry of the search for the root of h.

    Attributes:
      eta: the next trial.
      low: the largest η at which the loss has not risen, or 0.
      high: the smallest η at which the loss has risen, or infinity.
      last: the latest trial, or NaN.
      deepest: the largest decrease of the loss so far.
      guessed: whether ``eta`` is the root of a secant through two trials on one side of it.
      trials: the number of trials.
      converged: whether ``eta`` is the root up to the tolerance.
    """

    eta: jax.Array
    low: _End
    high: _End
    last: _End
    deepest: jax.Array
    guessed: jax.Array
    trials: jax.Array
    converged: jax.Array


def critical_sharpness(
    loss_fn: LossFn, params: Params, update: Grads, *, start: Scalar = 1.0
) -> jax.Array:
    r"""Critical sharpness 2/η_c along an update, from at most 8 forward passes.

    η_c is the smallest η > 0 with L(θ + ηu) > L(θ), the learning rate at which the update u stops
    to reduce the loss. On a quadratic loss, 2/η_c = uᵀHu/(−gᵀu), which is λ_max if u = −g is a top
    eigenvector. It needs no gradients, so it suits models for which Hessian-vector products cost
    too much.

    A sequence of trials brackets η_c. If the loss rises and falls several times along the update,
    η_c is one of the points at which it starts to exceed L(θ), and not necessarily the first.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ.
      update: u, a tree like ``params``: minus the gradient, so that 2/η_c compares with 2/η, or
        what the optimizer adds to the parameters, so that 2/η_c > 2 means that this step raises the
        loss.
      start: the first trial of η. Along a training, 2 divided by the previous result.

    Returns:
      2/η_c, a scalar. On a quadratic loss it is accurate to 1% if η_c is within a factor of 10⁴ of
      ``start``. On other losses it is as accurate if ``start`` is close to η_c, for example from an
      earlier measurement. The result is 0 if the loss does not rise in any trial, and infinity if
      it rises in all of them, which means that ``update`` is not a descent direction.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if ``update`` does not have the shapes of ``params``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(3 * w**2) / 2
      >>> update = -jax.grad(loss_fn)(jnp.ones(2))
      >>> print(f"{measures.critical_sharpness(loss_fn, jnp.ones(2), update):.3f}")
      3.000

    References:
      Kalra et al., `A Scalable Measure of Loss Landscape Curvature for Analyzing the Training
      Dynamics of LLMs <https://arxiv.org/abs/2601.16979>`_, 2026.
    """
    check_loss("critical_sharpness", loss_fn, params)
    check_numbers(start=start)
    if not alike(update, params):
        raise ValueError(
            "critical_sharpness needs an update with the shapes of params, "
            f"{jax.tree.map(jnp.shape, params)}, but it has {jax.tree.map(jnp.shape, update)}: "
            "write update=jax.tree.map(jnp.negative, jax.grad(loss_fn)(params)), or pass the "
            "updates that tx.update returns."
        )
    params, update = in_float32_or_wider(params), in_float32_or_wider(update)
    loss = jnp.asarray(loss_fn(params))

    def trial(search: _Search) -> _Search:
        eta = search.eta
        moved = jax.tree.map(lambda w, u: w + eta.astype(w.dtype) * u, params, update)
        slope = (loss_fn(moved) - loss) / eta
        return _after(search, jnp.where(jnp.isnan(slope), jnp.inf, slope))

    eta = jnp.asarray(start, loss.dtype)
    zero, none, no = 0 * eta, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    unknown = jnp.full_like(eta, jnp.nan)
    first = _Search(
        eta=eta,
        low=_End(zero, unknown),
        high=_End(zero + jnp.inf, unknown),
        last=_End(unknown, unknown),
        deepest=zero,
        guessed=no,
        trials=none,
        converged=no,
    )
    last: _Search = jax.lax.while_loop(
        lambda search: ~search.converged & (search.trials < MOST_TRIALS), trial, first
    )
    never = ~last.converged & jnp.isinf(last.high.eta)
    always = ~last.converged & (last.low.eta == 0)
    return jnp.where(never, 0, jnp.where(always, jnp.inf, 2 / last.eta))


def _after(search: _Search, slope: jax.Array) -> _Search:
    """Narrows the bracket by a trial with this slope, and chooses the next trial."""
    here = _End(search.eta, slope)
    rises = slope > 0
    again = rises == (search.last.slope > 0)  # on the same side of the root as the last trial
    low = _either(rises, search.low, here)
    high = _either(rises, here, search.high)
    deepest = jnp.maximum(search.deepest, -slope * here.eta)
    # The Illinois method halves the slope at the end that stays.
    halved = jnp.where(again, 0.5, 1.0).astype(slope.dtype)
    low = low._replace(slope=jnp.where(rises, halved * low.slope, low.slope))
    high = high._replace(slope=jnp.where(rises, high.slope, halved * high.slope))
    bracketed = (low.eta > 0) & jnp.isfinite(high.eta)
    inside = low.eta + (high.eta - low.eta) / (1 + _ratio(high.slope, -low.slope))
    # Before there is a bracket, follow a secant and then jump across the root.
    root = here.eta - slope * (here.eta - search.last.eta) / (slope - search.last.slope)
    ahead = jnp.where(rises, (root > 0) & (root < here.eta), (root > here.eta) & (root < jnp.inf))
    limited = jnp.clip(root, here.eta / FARTHEST, here.eta * FARTHEST)
    follow = ~search.guessed & ahead
    near = search.guessed & (jnp.abs(slope) <= 0.1 * jnp.abs(search.last.slope))
    factor = jnp.where(near, NEAR, JUMP).astype(slope.dtype)
    jump = jnp.where(rises, here.eta / factor, here.eta * factor)
    # If the loss is convex along the update, this bounds the relative error of η by a thousandth.
    converged = (deepest > 0) & (jnp.abs(slope) * here.eta <= TOLERANCE * deepest)
    outside = jnp.where(follow, limited, jump)
    following = jnp.where(bracketed, inside, outside)
    return _Search(
        eta=jnp.where(converged, here.eta, following),
        low=low,
        high=high,
        last=here,
        deepest=deepest,
        guessed=follow & (limited == root) & ~bracketed,
        trials=search.trials + 1,
        converged=converged,
    )


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """x/y of two positive slopes, limited so that a secant moves away from the end with y."""
    return jnp.where(y == 0, STEEPEST, jnp.minimum(x / jnp.where(y == 0, 1, y), STEEPEST))


def _either(condition: jax.Array, x: _End, y: _End) -> _End:
    return _End(jnp.where(condition, x.eta, y.eta), jnp.where(condition, x.slope, y.slope))
