"""The height of the loss between two solutions, along the segment or another path.

The height at the position t of a path is the loss there minus the loss on the line between those of
the ends: h(t) = L(φ(t)) − (1−t)L(φ(0)) − tL(φ(1)). The barrier is its maximum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.checks import alike
from flatreg.measures.checks import check_weights, checked_output
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params


class Barrier(NamedTuple):
    """The barrier along a path, and the losses from which it was computed.

    Attributes:
      value: the largest height of the loss above the line between the losses of the ends. It is 0
        if the loss is nowhere above that line.
      standard_error: the standard error of the height at ``position`` over the examples, if the
        loss returns one number per example. Otherwise 0. It does not include that the largest of
        several heights was chosen.
      position: the position t of the largest height.
      positions: all positions, shape (points,), from 0 to 1.
      losses: the mean losses at the positions, shape (points,).
    """

    value: jax.Array
    standard_error: jax.Array
    position: jax.Array
    positions: jax.Array
    losses: jax.Array


def barrier(
    loss_fn: Callable[[Params], jax.Array], a: Params, b: Params, *, points: int = 21
) -> Barrier:
    r"""The barrier of the loss on the segment between two solutions.

    max over t of L((1−t)a + tb) − (1−t)L(a) − tL(b). It is 0 for a convex loss. Two solutions are
    linearly connected if it is close to 0.

    Args:
      loss_fn: ``params -> scalar``, such as a :func:`dataset_loss`, or ``params -> losses`` of
        shape (n,) with one loss per example, which gives a standard error. To recompute the
        statistics of BatchNorm along the path, use :func:`with_batch_statistics`.
      a: the parameters of the first solution, at t = 0.
      b: the parameters of the second solution, at t = 1.
      points: the number of positions, equally spaced from 0 to 1, at least 3. The barrier is the
        maximum over these positions, so it is a lower bound on that over the segment.

    Returns:
      :class:`Barrier`.

    Raises:
      TypeError: if the loss is not a floating-point scalar or vector.
      ValueError: if the solutions have different shapes, or ``points`` is below 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> found = measures.barrier(lambda w: (w**2 - 1.0) ** 2, jnp.array(-1.0), jnp.array(1.0))
      >>> print(found.value, found.position)
      1.0 0.5

    References:
      Frankle et al., `Linear Mode Connectivity and the Lottery Ticket Hypothesis
      <https://arxiv.org/abs/1912.05671>`_, ICML 2020.
    """
    a, b = checked_ends("barrier", a, b)
    check_losses("barrier", loss_fn, a)

    def point(t: jax.Array) -> Params:
        return jax.tree.map(lambda x, y: (1 - t).astype(x.dtype) * x + t.astype(x.dtype) * y, a, b)

    return barrier_along(loss_fn, point, points)


def barrier_along(
    loss_fn: Callable[[Params], jax.Array], point: Callable[[jax.Array], Params], points: int
) -> Barrier:
    """The barrier along the path t ↦ ``point(t)``, whose ends are the two solutions."""
    if points < 3:
        raise ValueError(
            f"points must be at least 3, the ends and one between them, got {points}: for example, "
            "write points=21."
        )
    positions = jnp.linspace(0, 1, points)
    losses = jax.lax.map(lambda t: jnp.atleast_1d(loss_fn(point(t))), positions)
    t = positions[:, None].astype(losses.dtype)
    heights = losses - (1 - t) * losses[0] - t * losses[-1]
    # The ends have height 0, without rounding errors.
    heights = heights.at[jnp.array([0, points - 1])].set(0)
    means = jnp.mean(heights, axis=1)
    highest = jnp.argmax(means)
    count = losses.shape[1]
    error = jnp.std(heights[highest], ddof=1) / count**0.5 if count > 1 else 0 * means[highest]
    return Barrier(means[highest], error, positions[highest], positions, jnp.mean(losses, axis=1))


def checked_ends(name: str, a: Params, b: Params) -> tuple[Params, Params]:
    """Returns both solutions in at least float32, after checking that their shapes agree."""
    check_weights(a)
    if not alike(a, b):
        raise ValueError(
            f"{name} needs two solutions of the same network, but their shapes are "
            f"{jax.tree.map(jnp.shape, a)} and {jax.tree.map(jnp.shape, b)}: pass the parameters "
            "of the same model both times, without any other state."
        )
    return in_float32_or_wider(a), in_float32_or_wider(b)


def check_losses(name: str, loss_fn: Callable[[Params], Any], params: Params) -> None:
    """Checks that the loss is a floating-point scalar or a vector of losses."""
    loss = checked_output(name, loss_fn, params)
    shape, dtype = getattr(loss, "shape", None), getattr(loss, "dtype", jnp.int32)
    if shape is None or len(shape) > 1 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} needs a loss that returns one floating-point number, or a vector with one per "
            f"example, but it returns {loss}: for example, write lambda params: "
            "loss_fn(params).mean()."
        )
