"""The loss along lines and planes through weight space."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike
from flatreg._core.tree import is_bias_or_scale, map_named, named_leaves, widened
from flatreg.measures.checks import check_loss, check_sequence
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Grads, Params


class KernelMap(Protocol):
    """The part of a linear map of ``flatreg.lipschitz`` that tells which weights form a filter."""

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel that are summed over for one output."""


def filter_normalized(
    params: Params, key: jax.Array, *, operators: Mapping[str, KernelMap] | None = None
) -> Grads:
    """A random direction in which every filter has the same norm as that filter of the weights.

    A filter consists of the weights of one output of one layer. Biases and the scales of
    normalization layers get a zero direction. This makes slices of networks comparable if the
    networks differ only by a rescaling of their filters.

    Without ``operators``, the names and shapes of the leaves decide:

    * Leaves with fewer than two axes, and leaves called ``bias``, ``scale``, ``b``, ``offset``,
      ``beta`` or ``gamma``, do not move, also if they are stacks with several axes.
    * In a leaf with two axes (in, out), the last axis is the output, as in Flax.
    * In a leaf with more axes, the axes of the bias next to it are the outputs and the layers of a
      stack: in Flax, a bias has one entry per output. Without a bias, or if its shape fits in
      several ways, an error is raised.

    Args:
      params: the trained weights.
      key: the random key for the direction.
      operators: the linear map of each kernel, as returned by ``flatreg.lipschitz.linear_maps(f,
        params, x)``. If given, only its kernels move. To move the table of an embedding as well,
        add it: ``maps | {"embedding": flatreg.lipschitz.Dense()}``.

    Returns:
      A direction for :func:`loss_slice`, a tree like ``params``.

    Raises:
      ValueError: if it is not clear which weights form a filter, or if ``operators`` is empty or
        contains an unknown path.

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
    leaves = named_leaves(params)
    axes = _filters(leaves) if operators is None else _traced_filters(leaves, operators)

    def normalized(path: str, d: jax.Array, w: jax.Array) -> jax.Array:
        if path not in axes:
            return jnp.zeros_like(w)
        lengths = [jnp.sqrt(jnp.sum(x**2, axis=axes[path], keepdims=True)) for x in (w, d)]
        return d * lengths[0] / lengths[1]

    direction: Grads = map_named(normalized, optax.tree.random_like(key, params), params)
    return direction


Axes: TypeAlias = dict[str, tuple[int, ...]]
"""The axes over which the weights of a filter extend, by the paths of the leaves."""


def _traced_filters(leaves: dict[str, Any], operators: Mapping[str, KernelMap]) -> Axes:
    """Returns the axes of the filters of the kernels in ``operators``."""
    unknown = operators.keys() - leaves.keys()
    if unknown or not operators:
        found = f"contains the paths {', '.join(sorted(unknown))}" if unknown else "is empty"
        raise ValueError(
            f"filter_normalized: operators {found}, but the paths of the parameters are "
            f"{', '.join(leaves)}. Trace the same tree: write operators=flatreg.lipschitz."
            "linear_maps(lambda params, x: …, params, x)."
        )
    return {path: kernel_map.input_axes(leaves[path]) for path, kernel_map in operators.items()}


def _filters(leaves: dict[str, Any]) -> Axes:
    """Returns the axes of the filters, according to names and to the shapes of biases."""
    axes: Axes = {}
    unclear = []
    for path, w in leaves.items():
        if w.ndim < 2 or is_bias_or_scale(path):
            continue
        found = {(0,)} if w.ndim == 2 else _axes_beside_bias(w, _bias_beside(path, leaves))
        if len(found) == 1:
            axes[path] = found.pop()
        else:
            unclear.append(f"{path} has shape {w.shape}")
    if unclear:
        raise ValueError(
            "filter_normalized cannot tell which axes are the outputs, and which are the layers of "
            f"a stack: {', '.join(unclear)}. Write operators=flatreg.lipschitz.linear_maps("
            "function, params, x)."
        )
    return axes


def _bias_beside(path: str, leaves: dict[str, Any]) -> Any:
    """Returns the bias in the same subtree as a leaf, or None."""
    parent = path.rpartition("/")[0]
    beside = (f"{parent}/{name}".lstrip("/") for name in ("bias", "b"))
    return next((leaves[name] for name in beside if name in leaves), None)


def _axes_beside_bias(w: Any, bias: Any) -> set[tuple[int, ...]]:
    """Returns all possible axes of the filters: those that the bias does not have.

    The bias of a stack of layers begins with the axes of the stack and ends with those of the
    outputs.
    """
    found = set()
    for stack in range(0 if bias is None else bias.ndim):
        outputs = bias.ndim - stack
        shape = w.shape[:stack] + w.shape[w.ndim - outputs :]
        if bias.ndim < w.ndim and shape == bias.shape:
            found.add(tuple(range(stack, w.ndim - outputs)))
    return found


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
        moved = jax.tree.map(lambda w, d: w + t.astype(w.dtype) * widened(d), params, direction)
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
