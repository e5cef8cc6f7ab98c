"""Maximization over a ball of weights by projected gradient ascent from several starts.

Both flatness measures are maxima over the ball ‖δ‖ ≤ ρ of perturbations θ + Tδ, with T fixed at θ.
This file defines the ball (:func:`ball_around`) and the ascent in it (:func:`ascend`). A maximum
found in this way is a lower bound on the true maximum.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative, checked_scale
from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, norm, unit
from flatreg.measures.checks import check_loss
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import Curvature, CurvatureMatrix, scaled_curvature
from flatreg.measures.weights import in_float32_or_wider, times
from flatreg.typing import Grads, Params, Scalar, Scale

LANCZOS_STEPS = 20
STALLED = 1e-6  # A value that rises by less, relative to itself, has not risen.
PATIENCE = 5  # the number of such points in a row that end an ascent

Height: TypeAlias = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""A function that an ascent maximizes: δ ↦ its value and its gradient."""


class Peak(NamedTuple):
    """The largest value along the path of an ascent, and the point δ at which it is attained."""

    value: jax.Array
    point: jax.Array


class Flatness(NamedTuple):
    """A lower bound on R⁰ or R¹, and the perturbation at which it is attained.

    Attributes:
      value: the largest value found. It is attained at ``perturbation``.
      perturbation: ε = Tδ, a tree like the parameters with ‖δ‖ ≤ ρ.
      start: the index in ``values`` of the start that led to ``value``. Index 0 is a start along
        the gradient; 1 and 2 are starts along plus and minus the top eigenvector. For R¹, 3 is the
        best point on the segment from θ to the maximizer of R⁰. The remaining starts are random.
      values: the value reached from each start, shape (starts,). If they differ much, more starts
        or steps may find a larger value.
      gradient_ratio: ‖T∇L(θ)‖/(ρ|λ|max), where |λ|max is the largest magnitude of an eigenvalue of
        the Hessian at θ. It is 0 at a minimum. It is infinite if the curvature is zero but the
        gradient is not.
    """

    value: jax.Array
    perturbation: Grads
    start: jax.Array
    values: jax.Array
    gradient_ratio: jax.Array


class Ball(NamedTuple):
    """The loss in a ball around θ as a function of the vector δ, and the starts of the ascents.

    Attributes:
      rise: δ ↦ L(θ+Tδ) − L(θ), and its gradient.
      product: (δ, v) ↦ T∇²L(θ+Tδ)Tv.
      rise_starts: where the ascents of the loss start, shape (starts, n).
      steepness_starts: where the ascents of the gradient norm start, shape (starts, n).
      to_perturbation: δ ↦ Tδ as a tree like the parameters.
      curvature: |λ|max, the largest magnitude of an eigenvalue of the Hessian at θ.
      steepness: s = ‖T∇L(θ)‖ + ρ|λ|max, an estimate of the largest gradient norm in the ball.
        Dividing by it prevents the square from overflowing or underflowing.
      gradient_ratio: ‖T∇L(θ)‖/(ρ|λ|max).
      rho: ρ, the radius.
      steps: the number of steps of an ascent.
    """

    rise: Height
    product: Callable[[jax.Array, jax.Array], jax.Array]
    rise_starts: jax.Array
    steepness_starts: jax.Array
    to_perturbation: Callable[[jax.Array], Grads]
    curvature: jax.Array
    steepness: jax.Array
    gradient_ratio: jax.Array
    rho: Scalar
    steps: int


def ball_around(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: Scalar,
    steps: int,
    random_starts: int,
    curvature: Curvature | None,
    scale: Scale | None,
) -> Ball:
    """Returns the ball of radius ρ around ``params`` and the starts of the ascents in it."""
    check_nonnegative(rho=rho)
    if steps < 1 or random_starts < 0:
        raise ValueError(
            f"steps must be at least 1 and random_starts at least 0, got {steps} and "
            f"{random_starts}: for example, write steps=100, random_starts=4."
        )
    params = in_float32_or_wider(params)
    check_loss("flatness in a ball", loss_fn, params)
    factors = checked_scale(scale, params)
    matrix = scaled_curvature(loss_fn, params, curvature, factors)

    def to_perturbation(delta: jax.Array) -> Grads:
        return times(factors, matrix.to_tree(delta))

    def moved(delta: jax.Array) -> Params:
        return jax.tree.map(jnp.add, params, to_perturbation(delta))

    def loss_at(delta: jax.Array) -> jax.Array:
        return jnp.asarray(loss_fn(moved(delta)))

    loss, g = jax.value_and_grad(loss_at)(jnp.zeros(matrix.size, matrix.dtype))
    random_key, restart_key = jax.random.split(key)
    # All random vectors in one draw, which is compiled once.
    random = jax.random.normal(random_key, (1 + random_starts, matrix.size), matrix.dtype)
    top = _top_eigenvectors(matrix, random[0], restart_key)
    steepness = norm(g) + rho * top.curvature
    steepness = jnp.where(steepness == 0, 1, steepness)

    def rise(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, slope = jax.value_and_grad(loss_at)(delta)
        return (value - loss).astype(delta.dtype), slope

    def product(delta: jax.Array, v: jax.Array) -> jax.Array:
        return scaled_curvature(loss_fn, moved(delta), curvature, factors).matvec(v)

    def starts(eigenvector: jax.Array) -> jax.Array:
        """Points on the sphere: along the gradient, plus and minus the eigenvector, and random."""
        directions = jnp.stack([g, eigenvector, -eigenvector, *random[1:]])
        points: jax.Array = jax.vmap(lambda direction: rho * unit(direction))(directions)
        return points

    return Ball(
        rise=rise,
        product=product,
        rise_starts=starts(top.largest),
        steepness_starts=starts(top.largest_in_magnitude),
        to_perturbation=to_perturbation,
        curvature=top.curvature,
        steepness=steepness,
        gradient_ratio=jnp.where(norm(g) == 0, 0, norm(g) / (rho * top.curvature)),
        rho=rho,
        steps=steps,
    )


class _TopEigenvectors(NamedTuple):
    """The eigenvectors of λ_max and of the eigenvalue of largest magnitude, and that magnitude."""

    largest: jax.Array
    largest_in_magnitude: jax.Array
    curvature: jax.Array


def _top_eigenvectors(
    matrix: CurvatureMatrix, start: jax.Array, restart_key: jax.Array
) -> _TopEigenvectors:
    """Top eigenvectors from at most 20 Lanczos steps, which is accurate enough for starts."""
    steps = min(LANCZOS_STEPS, matrix.size)
    krylov = tridiagonalize(matrix.matvec, start, steps, restart_key)
    values, vectors = krylov.eigh()
    return _TopEigenvectors(
        largest=matmul(krylov.basis.T, vectors[:, -1]),
        largest_in_magnitude=matmul(krylov.basis.T, vectors[:, jnp.argmax(jnp.abs(values))]),
        curvature=jnp.max(jnp.abs(values)),
    )


class _Ascent(NamedTuple):
    """The loop carry of one ascent."""

    point: jax.Array
    highest: jax.Array  # the largest value so far
    best: jax.Array  # the point at which it is attained
    evaluations: jax.Array  # how many points have been evaluated
    stalled: jax.Array  # for how many points in a row the value has not risen


def ascend(
    ball: Ball, height: Height, bend: jax.Array, start: jax.Array, steps: jax.Array | int
) -> Peak:
    """Projected gradient ascent of ``height``.

    An ascent ends early if the value has not risen by a millionth in five steps.

    Args:
      ball: the ball, which contains the radius.
      height: the function of δ to maximize, with its gradient.
      bend: an estimate of the largest second derivative of ``height``. The step size is 1/``bend``.
      start: the point to start from, shape (n,).
      steps: the number of steps. With 0, only the start is evaluated.
    """
    none = jnp.zeros((), jnp.int32)
    first = _Ascent(start, jnp.full((), -jnp.inf, start.dtype), start, none, none)
    last: _Ascent = jax.lax.while_loop(
        # Each of the steps ends at one more point, which is evaluated too.
        lambda carry: (carry.evaluations <= steps) & (carry.stalled < PATIENCE),
        lambda carry: _ascent_step(ball, height, bend, carry),
        first,
    )
    return Peak(last.highest, last.best)


def _ascent_step(ball: Ball, height: Height, bend: jax.Array, carry: _Ascent) -> _Ascent:
    """Keeps the point if it is the highest so far, then takes a projected gradient step."""
    point, highest, best, evaluations, stalled = carry
    value, uphill = height(point)
    higher = value > highest
    rises = value - highest > STALLED * jnp.abs(value)
    # If there is little curvature, the step is a thousand radii long and ends on the boundary.
    length = _over(1.0, bend + 1e-3 * _over(norm(uphill), ball.rho))
    return _Ascent(
        point=_project(point + length * uphill, ball.rho),
        highest=jnp.where(higher, value, highest),
        best=jnp.where(higher, point, best),
        evaluations=evaluations + 1,
        stalled=jnp.where(rises, 0, stalled + 1),
    )


def best_of(ball: Ball, peaks: Peak) -> Flatness:
    """Returns the result of the ascent that reached the largest value. All have a leading axis."""
    start = jnp.argmax(peaks.value)
    perturbation = ball.to_perturbation(peaks.point[start])
    return Flatness(peaks.value[start], perturbation, start, peaks.value, ball.gradient_ratio)


def _project(delta: jax.Array, rho: Scalar) -> jax.Array:
    """Returns the point of the ball that is nearest to ``delta``."""
    return delta * jnp.minimum(1, _over(rho, norm(delta)))


def _over(x: Scalar, y: Scalar) -> jax.Array:
    """Returns x/y, or 0 if y = 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))
