"""Projected gradient ascent within a ball of weights, from several starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative, checked_scale
from flatreg._core.krylov import tridiagonalize
from flatreg._core.tree import matmul, norm, unit
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import operator, times, widened
from flatreg.typing import Grads, Params, Scale

LANCZOS_STEPS = 20


class Ball(NamedTuple):
    """The ball in δ as vectors: L − L(θ) and ½‖T∇L/s‖² in it, and where an ascent may start.

    s = ‖T∇L(θ)‖ + ρ|λ|max is about the largest gradient, which may be too large to be squared.
    """

    rise: Callable[[jax.Array], jax.Array]
    half_square: Callable[[jax.Array], jax.Array]
    rise_starts: jax.Array
    steepness_starts: jax.Array
    to_perturbation: Callable[[jax.Array], Grads]
    curvature: jax.Array
    steepness: jax.Array
    gradient_ratio: jax.Array
    rho: float
    steps: int


def make_ball(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    rho: float,
    steps: int,
    random_starts: int,
    scale: Scale | None,
) -> Ball:
    """The loss around ``params`` in δ, and the starts that its gradient and curvature suggest."""
    check_nonnegative(rho=rho)
    if steps < 1 or random_starts < 0:
        raise ValueError(f"steps must be at least 1, got {steps}, and random_starts at least 0.")
    params = widened(params)
    factors = checked_scale(scale, params)
    matrix = operator(loss_fn, params, scale=scale)

    def loss_at(d: jax.Array) -> jax.Array:
        step = times(factors, matrix.to_tree(d))
        return jnp.asarray(loss_fn(jax.tree.map(jnp.add, params, step)))

    centre = jnp.zeros(matrix.size, matrix.dtype)
    loss, g = jax.value_and_grad(loss_at)(centre)
    keys = jax.random.split(key, 3)
    first = jax.random.normal(keys[0], (matrix.size,), matrix.dtype)
    krylov = tridiagonalize(matrix.matvec, first, min(LANCZOS_STEPS, matrix.size), keys[1])
    values, vectors = krylov.eigh()
    largest = matmul(krylov.basis.T, vectors[:, -1])
    farthest = matmul(krylov.basis.T, vectors[:, jnp.argmax(jnp.abs(values))])
    curvature = jnp.max(jnp.abs(values))
    steepness = norm(g) + rho * curvature
    steepness = jnp.where(steepness == 0, 1, steepness)
    random = jax.random.normal(keys[2], (random_starts, matrix.size), matrix.dtype)

    def half_square(d: jax.Array) -> jax.Array:
        slope = jax.grad(loss_at)(d) / steepness
        return matmul(slope, slope) / 2

    def starts(vector: jax.Array) -> jax.Array:
        directions = jnp.stack([g, vector, -vector, *random])
        points: jax.Array = jax.vmap(lambda d: rho * unit(d))(directions)
        return points

    return Ball(
        rise=lambda d: loss_at(d) - loss,
        half_square=half_square,
        rise_starts=starts(largest),
        steepness_starts=starts(farthest),
        to_perturbation=lambda d: times(factors, matrix.to_tree(d)),
        curvature=curvature,
        steepness=steepness,
        gradient_ratio=jnp.where(norm(g) == 0, 0, norm(g) / (rho * curvature)),
        rho=rho,
        steps=steps,
    )


def ascend(
    ball: Ball, height: Callable[[jax.Array], jax.Array], bend: jax.Array, starts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The highest point on the way of each projected ascent, with steps of 1/``bend``."""

    def from_start(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple[jax.Array, jax.Array, jax.Array], _: None) -> tuple[Any, None]:
            d, highest, best = carry
            value, uphill = jax.value_and_grad(height)(d)
            higher = value > highest
            highest, best = jnp.where(higher, value, highest), jnp.where(higher, d, best)
            # Where there is little curvature a step goes a thousand radii, hence to the boundary.
            length = _over(1.0, bend + 1e-3 * _over(norm(uphill), ball.rho))
            return (_project(d + length * uphill, ball.rho), highest, best), None

        init = start, jnp.full((), -jnp.inf, starts.dtype), start
        (d, highest, best), _ = jax.lax.scan(step, init, length=ball.steps)
        value = height(d)
        return jnp.maximum(value, highest), jnp.where(value > highest, d, best)

    values, points = jax.lax.map(from_start, starts)
    return values, points


def _project(d: jax.Array, rho: float) -> jax.Array:
    return d * jnp.minimum(1, _over(rho, norm(d)))


def _over(x: Any, y: jax.Array | float) -> jax.Array:
    """x/y, and 0 for y = 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))
