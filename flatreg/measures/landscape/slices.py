"""The loss along lines and planes through weight space."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike
from flatreg.measures.checks import check_loss, check_sequence
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Grads, Params


def filter_normalized(params: Params, key: jax.Array) -> Grads:
    """A random direction in which every filter has the same norm as that filter of the weights.

    A filter consists of the weights of one output. As in Flax, the last axis of a leaf is the
    output axis. Leaves with fewer than two axes (biases, normalization) get a zero direction. This
    makes slices of networks comparable if the networks differ only by a rescaling of their filters.

    Args:
      params: the trained weights.
      key: the random key for the direction.

    Returns:
      A direction for :func:`loss_slice`, a tree like ``params``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
      >>> direction = measures.filter_normalized(params, jax.random.key(0))
      >>> print(jnp.linalg.norm(direction["kernel"], axis=0).round(3), direction["bias"])
      [5. 2.] [0. 0.]

    References:
      Li et al., `Visualizing the Loss Landscape of Neural Nets
      <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.
    """
    params = in_float32_or_wider(params)

    def normalized(d: jax.Array, w: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return jnp.zeros_like(w)
        axes = tuple(range(w.ndim - 1))
        lengths = [jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (w, d)]
        return d * lengths[0] / lengths[1]

    direction: Grads = jax.tree.map(normalized, optax.tree.random_like(key, params), params)
    return direction


def loss_slice(loss_fn: LossFn, params: Params, *axes: tuple[Grads, Any]) -> jax.Array:
    r"""The loss on a grid of points: a curve along one direction or a surface along two.

    The points are θ + Σᵢ tᵢdᵢ.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      params: θ, the origin of the grid.
      *axes: pairs ``(direction, positions)`` of dᵢ, a tree like ``params``, and the values of tᵢ,
        shape (mᵢ,). Useful directions are :func:`filter_normalized` ones, eigenvectors, and the
        difference of two solutions.

    Returns:
      The losses, shape (m₁,) or (m₁, m₂). They are evaluated one after another.

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if called without axes, or if an axis is not a pair of this form.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: w[0] ** 2 + 10 * w[1] ** 2
      >>> t = jnp.array([-1.0, 0.0, 1.0])
      >>> print(measures.loss_slice(loss_fn, jnp.zeros(2), (jnp.eye(2)[0], t), (jnp.eye(2)[1], t)))
      [[11.  1. 11.]
       [10.  0. 10.]
       [11.  1. 11.]]
    """
    if not axes or not all(_is_axis(axis, params) for axis in axes):
        raise ValueError(
            "loss_slice takes pairs (direction, positions) of a tree like params and an array of "
            "shape (m,): for example, write loss_slice(loss_fn, params, (direction, "
            "jnp.linspace(-1, 1, 21)))."
        )
    check_loss("loss_slice", loss_fn, params)
    params = in_float32_or_wider(params)
    (direction, positions), *others = axes

    def losses_at(t: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda w, d: w + t.astype(w.dtype) * d, params, direction)
        return loss_slice(loss_fn, moved, *others) if others else loss_fn(moved)

    losses: jax.Array = jax.lax.map(losses_at, jnp.asarray(positions))
    return losses


def _is_axis(axis: Any, params: Params) -> bool:
    """Whether ``axis`` is a pair (direction, positions)."""
    if not isinstance(axis, tuple | list) or len(axis) != 2:
        return False
    return alike(axis[0], params) and jnp.asarray(axis[1]).ndim == 1


def interpolate(loss_fn: LossFn, start: Params, end: Params, positions: Any) -> jax.Array:
    """The loss on the line between two solutions, L((1 − t)·start + t·end).

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`.
      start: the parameters of the first solution, at t = 0.
      end: the parameters of the second solution, at t = 1.
      positions: the values of t, shape (m,).

    Returns:
      The losses, shape (m,).

    Raises:
      TypeError: if the loss is not a floating-point scalar.
      ValueError: if ``positions`` is a single number, or the solutions have different shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: (w**2 - 1.0) ** 2
      >>> print(measures.interpolate(loss_fn, jnp.array(-1.0), jnp.array(1.0), [0.0, 0.5, 1.0]))
      [0. 1. 0.]
    """
    check_sequence("positions", positions, "jnp.linspace(0, 1, 11)")
    if not alike(start, end):
        raise ValueError(
            "interpolate needs two solutions of the same network, but their shapes are "
            f"{jax.tree.map(jnp.shape, start)} and {jax.tree.map(jnp.shape, end)}: pass the "
            "parameters of the same model both times, without any other state."
        )
    start, end = in_float32_or_wider(start), in_float32_or_wider(end)
    return loss_slice(loss_fn, start, (optax.tree.sub(end, start), positions))
