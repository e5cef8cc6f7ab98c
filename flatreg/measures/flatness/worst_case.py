r"""Adaptive worst-case sharpness: the largest rise of the loss in a ball or box, by Auto-PGD.

    max over ‖δ‖ ≤ ρ of L(θ+Tδ) − L(θ),    T fixed at θ,    with the L2 or the L∞ norm.

Auto-PGD is projected gradient ascent with steps of a fixed length, a momentum term, and a schedule
of checkpoints. If the ascent has stalled at a checkpoint, it halves the step and returns to the
best point so far. It needs neither the curvature nor a step size, so it is a maximizer that is
independent of those of R⁰ and R¹.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flatreg._core.checks import check_key, check_nonnegative, checked_scale
from flatreg._core.tree import norm as l2_norm
from flatreg._core.tree import unit
from flatreg.measures.checks import check_loss
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider, times
from flatreg.typing import Params, Scalar, Scale

MOMENTUM = 0.75  # the share of the new step; the rest repeats the change of the step before
SUCCESSES = 0.75  # the share of steps that must raise the loss for the step size to stay

Norm: TypeAlias = Literal["l2", "linf"]
"""The norm of the perturbations: Euclidean for a ball, or the largest entry for a box."""


class WorstCase(NamedTuple):
    """The largest rise of the loss that was found, and the point where the loss is that high.

    Attributes:
      value: L(point) − L(θ), computed at ``point``. It is a lower bound on the maximum.
      point: θ + Tδ, a tree like the parameters in at least float32.
    """

    value: jax.Array
    point: Params


class _Geometry(NamedTuple):
    """What depends on the norm.

    Attributes:
      steepest: the direction of length one in which the loss rises most, given its gradient.
      project: the nearest point of the ball of radius ρ.
      random: a random start in the ball.
    """

    steepest: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, Scalar], jax.Array]
    random: Callable[[jax.Array, jax.Array, Scalar], jax.Array]


def _project_l2(delta: jax.Array, rho: Scalar) -> jax.Array:
    length = l2_norm(delta)
    return delta * jnp.minimum(1, rho / jnp.where(length == 0, 1, length))


def _random_l2(key: jax.Array, like: jax.Array, rho: Scalar) -> jax.Array:
    direction: jax.Array = unit(jax.random.normal(key, like.shape, like.dtype))
    return rho * direction


def _random_linf(key: jax.Array, like: jax.Array, rho: Scalar) -> jax.Array:
    return rho * jax.random.uniform(key, like.shape, like.dtype, -1, 1)


_GEOMETRIES: dict[Norm, _Geometry] = {
    "l2": _Geometry(unit, _project_l2, _random_l2),
    "linf": _Geometry(jnp.sign, lambda delta, rho: jnp.clip(delta, -rho, rho), _random_linf),
}


def worst_case_sharpness(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: Scalar,
    *,
    norm: Norm = "l2",
    scale: Scale | None = None,
    steps: int = 100,
    random_starts: int = 4,
) -> WorstCase:
    r"""Worst-case sharpness, the largest rise of the loss in a ball or box, by Auto-PGD.

    max L(θ+Tδ) − L(θ) over ‖δ‖ ≤ ρ. With ``scale`` the absolute values of the weights, this is
    adaptive worst-case sharpness. The result is a lower bound that is attained at a point of the
    ball, up to rounding. With ``norm="l2"`` it estimates the same maximum as
    :func:`zeroth_order_flatness`, by another maximizer.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`. To compare networks
        whose logits differ in scale, apply :func:`normalized_logits` inside the loss.
      params: θ, the center.
      key: the random key for the random starts.
      rho: ρ ≥ 0, the radius in units of the parameters, or of δ if ``scale`` is given.
      norm: ``"l2"`` for a ball, or ``"linf"`` for a box, in which every entry of δ is at most ρ.
      scale: ``params -> T`` with one factor per weight. If None, T = 1.
      steps: the number of ascent steps from each start, each one gradient, at least 1.
      random_starts: the number of random starts, in addition to the start at θ.

    Returns:
      :class:`WorstCase`.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if ρ is negative, ``steps`` is below 1, or ``norm`` is not one of the two strings.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> key, w = jax.random.key(0), jnp.zeros(2)
      >>> ball = measures.worst_case_sharpness(loss_fn, w, key, 0.1)
      >>> box = measures.worst_case_sharpness(loss_fn, w, key, 0.1, norm="linf")
      >>> print(f"{ball.value:.4f} {box.value:.4f}")  # ρ²λ_max/2 and ρ² tr H/2
      0.0150 0.0200

    References:
      Andriushchenko et al., `A Modern Look at the Relationship between Sharpness and
      Generalization <https://arxiv.org/abs/2302.07011>`_, ICML 2023. Croce and Hein, `Reliable
      Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
      <https://arxiv.org/abs/2003.01690>`_, ICML 2020.
    """
    check_nonnegative(rho=rho)
    check_key(key, "worst_case_sharpness(loss_fn, params, jax.random.key(0), rho=0.1)")
    if steps < 1 or random_starts < 0:
        raise ValueError(
            f"steps must be at least 1 and random_starts at least 0, got {steps} and "
            f"{random_starts}: for example, write steps=100, random_starts=4."
        )
    if norm not in _GEOMETRIES:
        raise ValueError(
            f"norm must be one of {', '.join(_GEOMETRIES)}, got {norm!r}: for example, write "
            'norm="l2".'
        )
    check_loss("worst_case_sharpness", loss_fn, params)
    params = in_float32_or_wider(params)
    factors = checked_scale(scale, params)
    flat, to_tree = ravel_pytree(params)
    geometry = _GEOMETRIES[norm]

    def point_at(delta: jax.Array) -> Params:
        return jax.tree.map(jnp.add, params, times(factors, to_tree(delta)))

    loss = jnp.asarray(loss_fn(params))

    def rise(delta: jax.Array) -> jax.Array:
        return (loss_fn(point_at(delta)) - loss).astype(delta.dtype)

    center = jnp.zeros_like(flat)
    starts = [center]
    starts += [geometry.random(k, flat, rho) for k in jax.random.split(key, random_starts)]
    values, deltas = jax.lax.map(
        lambda start: _auto_pgd(rise, geometry, rho, steps, start), jnp.stack(starts)
    )
    found = jnp.argmax(values)
    delta = jnp.where(values[found] > 0, deltas[found], center)
    return WorstCase(rise(delta), point_at(delta))


class _Ascent(NamedTuple):
    """The loop carry of Auto-PGD.

    Attributes:
      point: the current point.
      previous: the point before it.
      value: the height of the previous point.
      step_size: the length of the steps.
      best: the highest point so far.
      uphill: the gradient at the highest point.
      highest: the height of the highest point.
      successes: how many steps since the last checkpoint have gone up.
      shortened: whether the step size was halved at the last checkpoint.
      highest_before: the height of the highest point at the last checkpoint.
    """

    point: jax.Array
    previous: jax.Array
    value: jax.Array
    step_size: jax.Array
    best: jax.Array
    uphill: jax.Array
    highest: jax.Array
    successes: jax.Array
    shortened: jax.Array
    highest_before: jax.Array


def _auto_pgd(
    height: Callable[[jax.Array], jax.Array],
    geometry: _Geometry,
    rho: Scalar,
    steps: int,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The largest height on the path from one start, and the point at which it is attained."""

    def step(carry: _Ascent, period: jax.Array) -> tuple[_Ascent, None]:
        """One step. ``period`` is the number of steps since the last checkpoint, or 0 at others."""
        value, uphill = jax.value_and_grad(height)(carry.point)
        higher = value > carry.highest
        carry = carry._replace(
            best=jnp.where(higher, carry.point, carry.best),
            uphill=jnp.where(higher, uphill, carry.uphill),
            highest=jnp.where(higher, value, carry.highest),
            successes=carry.successes + (value > carry.value),
        )
        checkpoint = period > 0
        few = carry.successes < SUCCESSES * period
        stuck = ~carry.shortened & (carry.highest == carry.highest_before)
        halve = checkpoint & (few | stuck)
        size = jnp.where(halve, carry.step_size / 2, carry.step_size)
        point = jnp.where(halve, carry.best, carry.point)
        previous = jnp.where(halve, carry.best, carry.previous)
        uphill = jnp.where(halve, carry.uphill, uphill)
        ahead = geometry.project(point + size * geometry.steepest(uphill), rho)
        moved = point + MOMENTUM * (ahead - point) + (1 - MOMENTUM) * (point - previous)
        return carry._replace(
            point=geometry.project(moved, rho),
            previous=point,
            value=jnp.where(halve, carry.highest, value),
            step_size=size,
            successes=jnp.where(checkpoint, 0, carry.successes),
            shortened=jnp.where(checkpoint, halve, carry.shortened),
            highest_before=jnp.where(checkpoint, carry.highest, carry.highest_before),
        ), None

    lowest = jnp.full((), -jnp.inf, start.dtype)
    first = _Ascent(
        point=start,
        previous=start,
        value=lowest,
        step_size=jnp.asarray(2 * rho, start.dtype),
        best=start,
        uphill=jnp.zeros_like(start),
        highest=lowest,
        successes=jnp.zeros((), jnp.int32),
        shortened=jnp.ones((), bool),
        highest_before=lowest,
    )
    last: _Ascent = jax.lax.scan(step, first, jnp.asarray(_periods(steps)))[0]
    value = height(last.point)
    higher = value > last.highest
    return jnp.where(higher, value, last.highest), jnp.where(higher, last.point, last.best)


def _periods(steps: int) -> np.ndarray:
    """The number of steps since the last checkpoint for each step that is one, and 0 elsewhere."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [math.ceil(share * steps) for share in shares if share <= 1]
    periods = np.zeros(steps, np.int32)
    for last, checkpoint in itertools.pairwise(checkpoints):
        if last < checkpoint < steps:
            periods[checkpoint] = checkpoint - last
    return periods
