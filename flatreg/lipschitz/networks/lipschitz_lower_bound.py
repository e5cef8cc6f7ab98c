"""A lower bound on the Lipschitz constant: the largest ‖J(x)‖₂ found by a search over x."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul, unit, widened, with_standard_promotion
from flatreg.lipschitz.batch_functions import check_inputs
from flatreg.lipschitz.inputs.jacobians import (
    jacobian,
    safe_sqrt,
    top_output,
    top_singular_value,
)
from flatreg.typing import Params

ExampleFn: TypeAlias = Callable[[jax.Array], jax.Array]
"""Maps one example, without a batch axis, to a vector of outputs."""

POWER_ITERATIONS = 2  # per trial point, starting from the direction at the current best point
FIRST_RADIUS = 0.1  # the first step length, relative to the norm of the starting point
LEAST_RADIUS = 1e-3  # the smallest step length, relative to the first one


class LipschitzLowerBound(NamedTuple):
    """A lower bound on the Lipschitz constant, in the 2-norm.

    Attributes:
      lower: ‖J(x)‖₂ at ``point``, up to the rounding errors of its computation.
      point: the input at which it was found, a single example.
    """

    lower: jax.Array
    point: jax.Array


@with_standard_promotion
def lipschitz_lower_bound(
    function: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    x: jax.Array,
    key: jax.Array,
    *,
    steps: int = 100,
) -> LipschitzLowerBound:
    r"""Returns the largest spectral norm of J = ∂f/∂x that a search from given points finds.

    Let v be the top singular direction. Each step of the search starts at the best point so far and
    moves along the gradient of ‖J(x)v‖, mixed with noise. Where J is locally constant, as in ReLU
    networks, only the noise moves the point. A step is kept only if it increases ‖J(x)v‖. The
    result is therefore at least the largest ‖J‖₂ at the starting points.

    Args:
      function: ``function(params, x)`` maps a batch to (batch,) or (batch, outputs), in evaluation
        mode. It is called with one example at a time under ``vmap``.
      params: the first argument of ``function``.
      x: the starting points, with shape (points, …), for example a few examples of the data.
      key: the random key for the noise.
      steps: the number of steps, at least 0. A step costs about three forward and three backward
        passes per starting point. The searches from all points run in parallel.

    Returns:
      A :class:`LipschitzLowerBound`.

    Raises:
      ValueError: if the output of the function is neither (batch,) nor (batch, outputs), or if
        ``steps`` is negative.
      TypeError: if x is not floating-point.

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
      <https://arxiv.org/abs/1805.10965>`_, NeurIPS 2018, who use lower bounds of this kind.
    """
    check_inputs(x)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}: write steps=100.")
    x, f = widened(x), functools.partial(function, params)

    def f_of_example(x: jax.Array) -> jax.Array:
        return f(x[None])[0].reshape(-1)

    def search(x: jax.Array, key: jax.Array) -> LipschitzLowerBound:
        matrix = jacobian(f, x)
        direction = unit(matmul(top_output(matrix), matrix).reshape(x.shape).astype(x.dtype))
        length = _length(x)
        first_radius = FIRST_RADIUS * jnp.where(length == 0, 1, length)
        start = _Search(x, direction, _stretch(f_of_example, x, direction), first_radius)
        step = functools.partial(_step, f_of_example, LEAST_RADIUS * first_radius)
        (best, *_), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return LipschitzLowerBound(top_singular_value(jacobian(f, best)), best)

    found = jax.vmap(search)(x, jax.random.split(key, len(x)))
    best = jnp.argmax(found.lower)
    return LipschitzLowerBound(found.lower[best], found.point[best])


class _Search(NamedTuple):
    """The state of a search.

    Attributes:
      point: the best point so far.
      direction: v, close to the top singular direction of J at the point.
      height: ‖J(x)v‖ there.
      radius: the length of the next step.
    """

    point: jax.Array
    direction: jax.Array
    height: jax.Array
    radius: jax.Array


def _step(
    f: ExampleFn, least_radius: jax.Array, state: _Search, key: jax.Array
) -> tuple[_Search, None]:
    """Tries one point and moves there if ‖J(x)v‖ is larger."""
    x, v, height, radius = state
    uphill = unit(jax.grad(lambda x: _stretch(f, x, v))(x))
    noise = unit(jax.random.normal(key, x.shape, x.dtype))
    trial = x + radius * unit(uphill + noise)
    trial_direction = _power_iteration(f, trial, v)
    trial_height = _stretch(f, trial, trial_direction)
    higher = trial_height > height
    next_state = _Search(
        jnp.where(higher, trial, x),
        jnp.where(higher, trial_direction, v),
        jnp.maximum(trial_height, height),
        jnp.where(higher, 1.5 * radius, jnp.maximum(0.8 * radius, least_radius)),
    )
    return next_state, None


def _stretch(f: ExampleFn, x: jax.Array, v: jax.Array) -> jax.Array:
    """Returns ‖J(x)v‖."""
    return _length(jax.jvp(f, (x,), (v,))[1])


def _power_iteration(f: ExampleFn, x: jax.Array, v: jax.Array) -> jax.Array:
    """Turns v toward the top singular direction of J(x)."""
    for _ in range(POWER_ITERATIONS):
        (v,) = jax.vjp(f, x)[1](jax.jvp(f, (x,), (v,))[1])  # v ← JᵀJv
        v = unit(v)
    return v


def _length(x: jax.Array) -> jax.Array:
    """Returns ‖x‖ over all axes."""
    return safe_sqrt(jnp.sum(x**2))
