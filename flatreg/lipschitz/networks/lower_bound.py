"""A lower bound on a function's Lipschitz constant: the largest ‖J(x)‖₂ that a search finds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul, unit, widened
from flatreg.lipschitz.inputs.gradient_penalties import check_inputs, root
from flatreg.lipschitz.inputs.sensitivity import jacobian, top_output, top_singular_value
from flatreg.typing import Params

POWER_ITERATIONS = 2  # at a trial, from the direction of the point before
LEAST_RADIUS = 1e-3  # of the search, relative to its first


class LipschitzLowerBound(NamedTuple):
    """What no Lipschitz constant is below, in the 2-norm.

    Attributes:
      lower: ‖J(x)‖₂ at ``point``.
      point: the input, of one example, where it is.
    """

    lower: jax.Array
    point: jax.Array


def lipschitz_lower_bound(
    function: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    x: jax.Array,
    key: jax.Array,
    *,
    steps: int = 100,
) -> LipschitzLowerBound:
    r"""The largest spectral norm of J = ∂f/∂x found by ascent from given points.

    From every point the search goes along the gradient of ‖J(x)v‖, v the top singular direction,
    mixed with noise, which alone moves it where J is constant, as in ReLU networks. It keeps
    what is higher. So the result is at least the largest ‖J‖₂ at the points themselves.

    Args:
      function: ``function(params, x)`` maps a batch to (batch,) or (batch, outputs), in evaluation
        mode. It is called with one example at a time under ``vmap``.
      params: the first argument of ``function``.
      x: where to start, (points, …): some examples of the data, say.
      key: draws the noise.
      steps: of the search; each costs three forward and three backward passes or so, for all
        points side by side.

    Returns:
      :class:`LipschitzLowerBound`.

    Raises:
      ValueError: if f's output is of another shape, or ``steps`` negative.
      TypeError: if x is not of floating point.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> f = lambda w, x: jnp.tanh(w * x[:, 0])  # steepest at 0
      >>> start = jnp.ones((1, 1))
      >>> found = lipschitz.lipschitz_lower_bound(f, 2.0, start, jax.random.key(0))
      >>> print(f"{found.lower:.2f}")
      2.00

    References:
      Virmaux and Scaman, `Lipschitz regularity of deep neural networks
      <https://arxiv.org/abs/1805.10965>`_, NeurIPS 2018, whose lower bounds are of this kind.
    """
    check_inputs(x)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}.")
    x, f = widened(x), functools.partial(function, params)

    def one(x: jax.Array) -> jax.Array:
        return f(x[None])[0].reshape(-1)

    def stretch(x: jax.Array, v: jax.Array) -> jax.Array:
        return _length(jax.jvp(one, (x,), (v,))[1])

    def turned(x: jax.Array, v: jax.Array) -> jax.Array:
        for _ in range(POWER_ITERATIONS):
            (v,) = jax.vjp(one, x)[1](jax.jvp(one, (x,), (v,))[1])  # v ← JᵀJv
            v = unit(v)
        return v

    def search(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix = jacobian(f, x)
        v = unit(matmul(top_output(matrix), matrix).reshape(x.shape).astype(x.dtype))
        reach = _length(x)
        reach = 0.1 * jnp.where(reach == 0, 1, reach)

        def step(carry: tuple[jax.Array, ...], key: jax.Array) -> tuple[Any, None]:
            x, v, highest, radius = carry
            uphill = unit(jax.grad(stretch)(x, v))
            noise = unit(jax.random.normal(key, x.shape, x.dtype))
            trial = x + radius * unit(uphill + noise)
            direction = turned(trial, v)
            height = stretch(trial, direction)
            higher = height > highest
            x, v = jnp.where(higher, trial, x), jnp.where(higher, direction, v)
            radius = jnp.where(
                higher, 1.5 * radius, jnp.maximum(0.8 * radius, LEAST_RADIUS * reach)
            )
            return (x, v, jnp.maximum(height, highest), radius), None

        init = x, v, stretch(x, v), reach
        (best, *_), _ = jax.lax.scan(step, init, jax.random.split(key, steps))
        return top_singular_value(jacobian(f, best)), best

    values, points = jax.vmap(search)(x, jax.random.split(key, len(x)))
    highest = jnp.argmax(values)
    return LipschitzLowerBound(values[highest], points[highest])


def _length(x: jax.Array) -> jax.Array:
    """‖x‖ over all axes."""
    return root(jnp.sum(x**2))
