r"""A curve of low loss between two solutions: a quadratic Bézier path with a trained control point.

    φ(t) = (1−t)²a + 2t(1−t)c + t²b

The control point c is trained to minimize the mean loss E_t L(φ(t)) over uniform t in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike, check_key
from flatreg.measures.landscape.barrier import barrier_along, check_losses, checked_ends
from flatreg.typing import Params


class BezierPath(NamedTuple):
    """A trained path between two solutions, and its barrier.

    Attributes:
      value: the barrier of the path, as in :class:`Barrier`.
      standard_error: the standard error of ``value`` over the examples, or 0, as in
        :class:`Barrier`.
      position: the position t on the path at which the loss is highest above the line.
      positions: the positions on the path, shape (points,), from 0 to 1.
      losses: the mean loss at each position, shape (points,).
      control: the control point c, a tree like the parameters.
    """

    value: jax.Array
    standard_error: jax.Array
    position: jax.Array
    positions: jax.Array
    losses: jax.Array
    control: Params


def bezier_point(a: Params, control: Params, b: Params, t: jax.Array) -> Params:
    """The point of a quadratic Bézier path at the position t.

    Args:
      a: the parameters at t = 0.
      control: the control point, such as the ``control`` of a :class:`BezierPath`.
      b: the parameters at t = 1.
      t: the position, a scalar in [0, 1].

    Returns:
      (1−t)²a + 2t(1−t)c + t²b.

    Examples:
      The accuracy along a trained path is ``jax.lax.map(lambda t: accuracy(measures.bezier_point(a,
      path.control, b, t)), path.positions)``.

      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> print(measures.bezier_point(jnp.array(0.0), jnp.array(4.0), jnp.array(2.0), 0.5))
      2.5
    """

    def mixed(x: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
        s = jnp.asarray(t, jnp.result_type(x))
        return (1 - s) ** 2 * x + 2 * s * (1 - s) * c + s**2 * y

    point: Params = jax.tree.map(mixed, a, control, b)
    return point


def bezier_path(
    loss_fn: Callable[[Params], jax.Array],
    a: Params,
    b: Params,
    key: jax.Array,
    *,
    steps: int = 500,
    learning_rate: float = 0.01,
    optimizer: optax.GradientTransformation | None = None,
    start: Params | None = None,
    points: int = 21,
) -> BezierPath:
    r"""Trains a quadratic Bézier path of low loss between two solutions, and measures its barrier.

    The control point starts in the middle of the segment, where the path is the segment itself.
    Each training step computes one gradient at a random position.

    Args:
      loss_fn: the loss, ``params -> scalar`` or ``params -> losses`` with one loss per example, as
        for :func:`barrier`.
      a: the parameters of the first solution, at t = 0.
      b: the parameters of the second solution, at t = 1.
      key: the random key for the positions.
      steps: the number of training steps.
      learning_rate: the learning rate of Adam, which decreases linearly to zero.
      optimizer: another Optax optimizer. ``learning_rate`` is then ignored.
      start: another initial control point, such as the ``control`` of an earlier result.
      points: the number of positions at which the barrier is measured, equally spaced from 0 to 1,
        at least 3.

    Returns:
      The trained path and its barrier, as :class:`BezierPath`.

    Raises:
      TypeError: if the loss is not a floating-point scalar or vector.
      ValueError: if the solutions have different shapes, or ``points`` is below 3.

    Examples:
      The loss is low on a ring, and the segment crosses its hole:

      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: (jnp.sum(w**2) - 1.0) ** 2
      >>> a, b = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> path = measures.bezier_path(loss_fn, a, b, jax.random.key(0))
      >>> print(measures.barrier(loss_fn, a, b).value, bool(path.value < 0.01))
      0.25 True

    References:
      Garipov et al., `Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs
      <https://arxiv.org/abs/1802.10026>`_, NeurIPS 2018.
    """
    a, b = checked_ends("bezier_path", a, b)
    check_losses("bezier_path", loss_fn, a)
    check_key(key, "bezier_path(loss_fn, a, b, jax.random.key(0))")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}: for example, write steps=500.")
    if start is None:
        start = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    elif not alike(start, a):
        raise ValueError(
            f"start must have the shapes of the solutions, {jax.tree.map(jnp.shape, a)}, but has "
            f"{jax.tree.map(jnp.shape, start)}: write start=path.control, with the result of an "
            "earlier call."
        )
    decreasing = optax.linear_schedule(learning_rate, 0.0, steps)
    tx = optax.adam(decreasing) if optimizer is None else optimizer

    def loss_at(control: Params, t: jax.Array) -> jax.Array:
        return jnp.mean(loss_fn(bezier_point(a, control, b, t)))

    def step(carry: _Training, key: jax.Array) -> tuple[_Training, None]:
        g = jax.grad(loss_at)(carry.control, jax.random.uniform(key))
        updates, opt_state = tx.update(g, carry.opt_state, carry.control)
        return _Training(optax.apply_updates(carry.control, updates), opt_state), None

    first = _Training(start, tx.init(start))
    control = jax.lax.scan(step, first, jax.random.split(key, steps))[0].control
    found = barrier_along(loss_fn, lambda t: bezier_point(a, control, b, t), points)
    return BezierPath(*found, control)


class _Training(NamedTuple):
    """The loop carry of the training of the control point."""

    control: Params
    opt_state: optax.OptState
