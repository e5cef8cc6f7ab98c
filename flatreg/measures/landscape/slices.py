"""The loss along lines and planes through weight space."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike
from flatreg.measures.dataset import LossFn
from flatreg.measures.inputs import check_loss, check_sequence
from flatreg.measures.spectrum.curvature import widened
from flatreg.typing import Grads, Params


def filter_normalized(params: Params, key: jax.Array) -> Grads:
    """A random direction whose every filter has the norm of the weights' filter.

    A filter is what feeds one output: the last axis of a leaf tells them apart, as in Flax. Leaves
    with fewer than two axes (biases, normalization) stay where they are, so that slices of networks
    which differ by a rescaling can be compared.

    Args:
      params: the trained weights.
      key: draws the direction.

    Returns:
      A tree like ``params``, for :func:`loss_slice`.

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
    params = widened(params)

    def normalized(d: jax.Array, w: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return jnp.zeros_like(w)
        axes = tuple(range(w.ndim - 1))
        lengths = [jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (w, d)]
        return d * lengths[0] / lengths[1]

    direction: Grads = jax.tree.map(normalized, optax.tree.random_like(key, params), params)
    return direction


def loss_slice(loss_fn: LossFn, params: Params, *axes: tuple[Grads, Any]) -> jax.Array:
    r"""L(θ + Σᵢ tᵢdᵢ) over a grid: a curve along one direction, a surface along two.

    Args:
      loss_fn: ``params -> scalar``.
      params: the origin θ.
      *axes: pairs of a direction dᵢ, a tree like ``params``, and its positions, shape (mᵢ,):
        :func:`filter_normalized` directions, eigenvectors, the difference of two solutions.

    Returns:
      The losses, shape (m₁,) or (m₁, m₂), one evaluation in memory at a time.

    Raises:
      TypeError: if the loss is no scalar.
      ValueError: without axes, or if one is no such pair.

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
            "loss_slice takes pairs of a direction, a tree like params, and of positions, shape "
            "(m,): loss_slice(loss_fn, params, (direction, jnp.linspace(-1, 1, 21)))."
        )
    check_loss("loss_slice", loss_fn, params)
    params = widened(params)
    (direction, positions), *others = axes

    def losses_at(t: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda w, d: w + t.astype(w.dtype) * d, params, direction)
        return loss_slice(loss_fn, moved, *others) if others else loss_fn(moved)

    losses: jax.Array = jax.lax.map(losses_at, jnp.asarray(positions))
    return losses


def _is_axis(axis: Any, params: Params) -> bool:
    """Whether it is a pair (direction, positions)."""
    if not isinstance(axis, tuple | list) or len(axis) != 2:
        return False
    return alike(axis[0], params) and jnp.asarray(axis[1]).ndim == 1


def interpolate(loss_fn: LossFn, start: Params, end: Params, positions: Any) -> jax.Array:
    """L((1 − t)·start + t·end): the way between two solutions; t = 0 and 1 are they.

    Args:
      loss_fn: ``params -> scalar``.
      start: the parameters of one solution.
      end: those of the other.
      positions: values of t, shape (m,).

    Returns:
      The losses, shape (m,).

    Raises:
      ValueError: if ``positions`` is one number, or the shapes of the solutions differ.

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
            "interpolate goes between two solutions of one network, but their shapes are "
            f"{jax.tree.map(jnp.shape, start)} and {jax.tree.map(jnp.shape, end)}: pass the "
            "parameters alone, twice of the same model."
        )
    start, end = widened(start), widened(end)
    return loss_slice(loss_fn, start, (optax.tree.sub(end, start), positions))
