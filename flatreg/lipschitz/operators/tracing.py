"""Which linear map each kernel of a model is, read off the jaxpr of a call.

Every parameter is followed through what only casts, transposes or reverses it into the convolution
or the product that it ends in. Beside, every intermediate array is known as a selection
source[i₁, i₂, …] of another one, by an index array an axis: so the wrapped padding of a circular
convolution, made of slices and concatenations, is recognized whatever made it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from flatreg._core.tree import named_leaves
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.linear_maps import Dense, LinearMap

CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
SAME = {"convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint"}

Indices: TypeAlias = tuple[np.ndarray[Any, Any], ...]


class Weight(NamedTuple):
    """A parameter, its axes in another order, some of them reversed."""

    path: str
    axes: tuple[int, ...]
    reversed_axes: frozenset[int] = frozenset()


class Data(NamedTuple):
    """An array that depends on the inputs: ``source[np.ix_(*indices)]``.

    ``maker`` is the weight of the convolution that made it, if since then it was only padded or,
    as ``split`` tells, reshaped to more axes, as for a sum over the parts of one.
    """

    source: object
    shape: tuple[int, ...]
    indices: Indices
    maker: str | None = None
    split: bool = False


Known: TypeAlias = Weight | Data | None
"""What a variable holds; None for what depends neither on an input nor directly on one weight."""


def linear_maps(function: Callable[..., Any], params: Any, *args: Any) -> dict[str, LinearMap]:
    r"""The linear map of every kernel, found by tracing ``function(params, *args)``.

    A kernel is a parameter that enters a convolution of the input as its kernel, or a product
    with the input as one factor. Strides, padding, dilations, groups and input sizes are those of
    the traced operation; casts, transposes and reversals on the way are undone, and so are ``jit``,
    ``checkpoint`` and custom derivative rules. Flax's circular padding of ``Conv`` is recognized.

    Not listed, because no single linear map of the input describes them: biases, scales and
    embeddings; a parameter that is used in two different ways, is computed with before its use, or
    enters a loop (``scan``, recurrent cells); kernels of a convolution whose input is padded by
    copies of itself other than by the circular padding of ``Conv`` (reflected padding); those of
    ``ConvTranspose`` with circular padding, which folds its output. Where a convolution's input is
    padded by zeros before it, the input is the padded one.

    Args:
      function: ``function(params, *args)``: a Linen ``model.apply``, or ``lambda params, x:
        nnx.merge(graphdef, params)(x)``; close over what is not an array.
      params: the parameters, or anything that has their shapes.
      *args: example inputs, or anything that has their shapes, with the batch as first axis.

    Returns:
      Linear maps by path, such as ``"params/Conv_0/kernel"``, in the order of the leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
      >>> model = lambda params, x: jnp.tanh(x @ params["kernel"] + params["bias"])
      >>> lipschitz.linear_maps(model, params, jnp.ones((8, 4)))
      {'kernel': Dense(contracting=None)}
    """
    closed = jax.make_jaxpr(function)(params, *args)
    paths = list(named_leaves(params))
    uses: dict[str, list[LinearMap | None]] = {path: [] for path in paths}
    known: list[Known] = []
    for i, var in enumerate(closed.jaxpr.invars):
        shape = var.aval.shape
        known.append(Weight(paths[i], tuple(range(len(shape)))) if i < len(paths) else _data(var))
    _trace(closed.jaxpr, known, uses)
    found = {path: maps[0] for path, maps in uses.items() if len(set(maps)) == 1}
    return {path: linear_map for path, linear_map in found.items() if linear_map is not None}


def _shape(var: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = var.aval.shape
    return shape


def _data(var: Any) -> Data:
    return Data(object(), var.aval.shape, tuple(np.arange(n) for n in var.aval.shape))


def _trace(jaxpr: Jaxpr, inputs: list[Known], uses: dict[str, list[LinearMap | None]]) -> Any:
    """Notes how ``jaxpr`` uses the weights among ``inputs``, and returns what it returns."""
    values: dict[Any, Known] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Known:
        return None if isinstance(atom, Literal) else values.get(atom)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = [p for p in eqn.params.values() if isinstance(p, ClosedJaxpr | Jaxpr)]
        if eqn.primitive.name in CALLS and len(inner) == 1:
            body = inner[0].jaxpr if isinstance(inner[0], ClosedJaxpr) else inner[0]
            if len(body.invars) == len(operands):
                values.update(zip(eqn.outvars, _trace(body, operands, uses), strict=True))
                continue
        moved = _moved(eqn, operands)
        if moved is not None:
            values[eqn.outvars[0]] = moved
            continue
        for i, operand in enumerate(operands):
            if isinstance(operand, Weight):
                uses[operand.path].append(_linear_map(eqn, i, operand, operands))
        if any(isinstance(operand, Data) for operand in operands):
            values.update({var: _data(var) for var in eqn.outvars})
            _follow_folds(eqn, operands, values, uses)
    return [read(atom) for atom in jaxpr.outvars]


def _follow_folds(
    eqn: JaxprEqn,
    operands: list[Known],
    values: dict[Any, Known],
    uses: dict[str, list[LinearMap | None]],
) -> None:
    """Unlists a convolution whose output is folded: padded, split and summed over the parts."""
    out, name, first = eqn.outvars[0], eqn.primitive.name, operands[0]
    made = _data(out)
    if name == "conv_general_dilated" and isinstance(operands[1], Weight):
        values[out] = made._replace(maker=operands[1].path)
    elif isinstance(first, Data) and first.maker is not None:
        if name in ("pad", "reshape"):
            split = first.split or len(_shape(out)) > len(_shape(eqn.invars[0]))
            values[out] = made._replace(maker=first.maker, split=split)
        elif name == "reduce_sum" and first.split:
            uses[first.maker].append(None)


def _moved(eqn: JaxprEqn, operands: list[Known]) -> Known:
    """The output of what only moves entries, None for anything else."""
    name, params, first = eqn.primitive.name, eqn.params, operands[0] if operands else None
    if name in SAME:
        return first
    if isinstance(first, Weight) and len(operands) == 1:
        if name == "transpose":
            axes = tuple(first.axes[i] for i in params["permutation"])
            return first._replace(axes=axes)
        if name == "rev":
            flipped = frozenset(first.axes[i] for i in params["dimensions"])
            return first._replace(reversed_axes=first.reversed_axes ^ flipped)
    if isinstance(first, Data):
        indices = list(first.indices)
        if name == "slice":
            steps = params["strides"] or (1,) * len(indices)
            cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
            return first._replace(
                indices=tuple(i[slice(*cut)] for i, cut in zip(indices, cuts, strict=True))
            )
        if name == "rev":
            for axis in params["dimensions"]:
                indices[axis] = indices[axis][::-1]
            return first._replace(indices=tuple(indices))
        if name == "concatenate":
            axis = params["dimension"]
            parts = [part for part in operands if isinstance(part, Data)]
            if len(parts) == len(operands) and all(_joins(first, part, axis) for part in parts):
                indices[axis] = np.concatenate([part.indices[axis] for part in parts])
                return first._replace(indices=tuple(indices))
    return None


def _joins(first: Data, part: Data, axis: int) -> bool:
    """Whether both select the same of the same source, but along ``axis``."""
    pairs = enumerate(zip(first.indices, part.indices, strict=True))
    same = all(i == axis or np.array_equal(x, y) for i, (x, y) in pairs)
    return first.source == part.source and same


def _linear_map(
    eqn: JaxprEqn, position: int, weight: Weight, operands: list[Known]
) -> LinearMap | None:
    """The linear map of the input that a weight is in this place, None if it is none."""
    other = operands[1 - position] if len(operands) == 2 else None
    if not isinstance(other, Data):
        return None
    if eqn.primitive.name == "dot_general":
        contracted, batch = eqn.params["dimension_numbers"]
        if batch[0] or not contracted[0] or weight.reversed_axes:
            return None
        # In the order of the input's axes.
        pairs = sorted(zip(contracted[1 - position], contracted[position], strict=True))
        axes = tuple(weight.axes[i] for _, i in pairs)
        return Dense(None if axes == tuple(range(len(weight.axes) - 1)) else axes)
    if eqn.primitive.name == "conv_general_dilated" and position == 1:
        return _convolution(eqn, weight, other)
    return None


def _convolution(eqn: JaxprEqn, weight: Weight, data: Data) -> Convolution | None:
    p = eqn.params
    layout = p["dimension_numbers"]
    _, channels, *spatial = layout.lhs_spec
    out, into, *window = (weight.axes[i] for i in layout.rhs_spec)
    flipped = weight.reversed_axes
    if p["batch_group_count"] != 1 or flipped not in (frozenset(), frozenset(window)):
        return None
    axes = (*window, into, out)
    taps = [_shape(eqn.invars[1])[i] for i in layout.rhs_spec[2:]]
    shape = _shape(eqn.invars[0])
    padding: Any = tuple((int(low), int(high)) for low, high in p["padding"])
    if any(len(np.unique(i)) < len(i) for i in data.indices):
        shape, padding = data.shape, "CIRCULAR"
    found = Convolution(
        tuple(shape[i] for i in (*spatial, channels)),
        tuple(p["window_strides"]),
        padding,
        tuple(p["lhs_dilation"]),
        tuple(p["rhs_dilation"]),
        p["feature_group_count"],
        kernel_axes=None if axes == tuple(range(len(axes))) else axes,
        reverse=bool(flipped),
    )
    if padding != "CIRCULAR":
        return found
    wraps = dict(zip(spatial, found.axes(tuple(taps)), strict=True))
    for i, indices in enumerate(data.indices):
        low, extent = 0, 1
        if i in wraps:
            low, extent = wraps[i].low, (wraps[i].window - 1) * wraps[i].kernel_dilation + 1
        expected = np.arange(-low, data.shape[i] - low + extent - 1) % data.shape[i]
        if not np.array_equal(indices, expected):
            return None
    plain = all(pair == (0, 0) for pair in p["padding"]) and set(p["lhs_dilation"]) == {1}
    return found if plain else None
