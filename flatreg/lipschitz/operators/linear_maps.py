"""Finds the linear map of every kernel of a model in the jaxpr of a call.

Each parameter is followed through casts, transpositions and reversals to the convolution or the
product in which it is used. In addition, the entries of every intermediate array are tracked as
long as operations only rearrange them: the array is ``source[np.ix_(i₁, i₂, …)]`` with known
indices. In this way, the wrapped padding of a circular convolution is recognized, regardless of the
slices and concatenations that produced it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from flatreg._core.tree import named_leaves
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.linear import LinearMap
from flatreg.lipschitz.programs import walk
from flatreg.typing import Params

# Operations that keep every entry where it is.
_IDENTITIES = {
    *("convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint"),
}


class Weight(NamedTuple):
    """A parameter with its axes in some order, some of them reversed.

    Attributes:
      path: the path of the parameter.
      axes: the axes of the parameter, in the order of the array's axes.
      reversed_axes: the axes of the parameter that are reversed.
    """

    path: str
    axes: tuple[int, ...]
    reversed_axes: frozenset[int] = frozenset()


class Data(NamedTuple):
    """An array that depends on the inputs: ``source[np.ix_(*indices)]``.

    Attributes:
      source: identifies the array whose entries these are.
      shape: the shape of the source.
      indices: the selected indices along each axis of the source.
      producer: the path of the convolution kernel that produced the array, as long as the array has
        only been padded or reshaped since then.
      is_split: whether a reshape has increased the number of axes since then.
    """

    source: object
    shape: tuple[int, ...]
    indices: tuple[np.ndarray[Any, Any], ...]
    producer: str | None = None
    is_split: bool = False


Tracked: TypeAlias = Weight | Data | None
"""What is known about an array. None: it depends on no input and is not just one parameter."""


def linear_maps(function: Callable[..., Any], params: Params, *args: Any) -> dict[str, LinearMap]:
    r"""Finds the linear map of every kernel by tracing ``function(params, *args)``.

    A kernel is a parameter that is used as the kernel of a convolution of the input, or as one
    factor of a product with the input. Strides, padding, dilations, groups and input sizes are
    those of the traced operation. Casts, transpositions and reversals of the kernel before this
    operation are taken into account. Operations inside ``jit``, ``checkpoint`` and functions with
    custom derivatives are found, too. The circular padding of Flax's ``Conv`` is recognized.

    The following parameters are not listed, because no single linear map of the input describes
    them:

    * biases, scales and embeddings;
    * parameters that are used in two different ways, that are changed before their use by an
      operation other than casts, transpositions and reversals, or that are used inside a loop
      (``scan``, recurrent cells);
    * kernels of convolutions whose input is padded with copies of its own entries in a way other
      than the circular padding of ``Conv``, such as reflected padding;
    * kernels of ``ConvTranspose`` with circular padding, which adds up parts of its output.

    If the input of a convolution is padded with zeros by a separate operation, the padded array
    counts as the input.

    Args:
      function: ``function(params, *args)``, for example a Linen ``model.apply`` or, in NNX,
        ``lambda params, x: nnx.merge(graphdef, params)(x)``. Arguments that are not arrays must be
        bound beforehand, for example with ``functools.partial``.
      params: the parameters, or a tree of objects with the same shapes and dtypes.
      *args: example inputs, or objects with the same shapes and dtypes. The first axis is the
        batch.

    Returns:
      The linear maps by the paths of their kernels, such as ``"params/Conv_0/kernel"``, in the
      order of the leaves of ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
      >>> model = lambda params, x: jnp.tanh(x @ params["kernel"] + params["bias"])
      >>> lipschitz.linear_maps(model, params, jnp.ones((8, 4)))
      {'kernel': Dense(contracting=None)}
    """
    program = jax.make_jaxpr(function)(params, *args)
    paths = list(named_leaves(params))
    variables = program.jaxpr.invars
    weights: list[Tracked] = [
        Weight(path, tuple(range(len(_shape(variable)))))
        for path, variable in zip(paths, variables, strict=False)
    ]
    inputs: list[Tracked] = [_new_data(variable) for variable in variables[len(paths) :]]
    finder = _Finder(paths)
    walk(program, [*weights, *inputs], finder.visit, constant=lambda _: None)
    return finder.unique_maps()


class _Finder:
    """Records how the operations of a program use each parameter."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._uses: dict[str, list[LinearMap | None]] = {path: [] for path in paths}

    def unique_maps(self) -> dict[str, LinearMap]:
        """Returns the linear map of each parameter that is always used in the same one."""
        first = {path: uses[0] for path, uses in self._uses.items() if len(set(uses)) == 1}
        return {path: linear_map for path, linear_map in first.items() if linear_map is not None}

    def visit(self, equation: JaxprEqn, operands: list[Tracked], path: str) -> list[Tracked]:
        """Records the parameters that an operation uses and returns what its outputs are."""
        del path
        outputs: list[Tracked] = [None] * len(equation.outvars)
        rearranged = _rearranged(equation, operands)
        if rearranged is not None:
            return [rearranged, *outputs[1:]]
        for i, operand in enumerate(operands):
            if isinstance(operand, Weight):
                self._uses[operand.path].append(_linear_map(equation, i, operand, operands))
        if not any(isinstance(operand, Data) for operand in operands):
            return outputs
        first, *others = map(_new_data, equation.outvars)
        return [self._with_producer(equation, operands, first), *others]

    def _with_producer(self, equation: JaxprEqn, operands: list[Tracked], output: Data) -> Data:
        """Records which convolution made an output, and omits its kernel if parts are added up.

        Flax computes circular transposed convolutions by adding up parts of the output of a
        convolution. In this case, the convolution alone is not the linear map of the layer.
        """
        name, first = equation.primitive.name, operands[0]
        if name == "conv_general_dilated" and isinstance(operands[1], Weight):
            return output._replace(producer=operands[1].path)
        if not isinstance(first, Data) or first.producer is None:
            return output
        if name in ("pad", "reshape"):
            more_axes = len(_shape(equation.outvars[0])) > len(_shape(equation.invars[0]))
            return output._replace(producer=first.producer, is_split=first.is_split or more_axes)
        if name == "reduce_sum" and first.is_split:
            self._uses[first.producer].append(None)
        return output


def _shape(variable: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape
    return shape


def _new_data(variable: Any) -> Data:
    """Returns an array of which only the shape is known."""
    shape = _shape(variable)
    return Data(object(), shape, tuple(np.arange(n) for n in shape))


def _rearranged(equation: JaxprEqn, operands: list[Tracked]) -> Tracked:
    """Returns the output of an operation that only rearranges entries, else None."""
    name, params = equation.primitive.name, equation.params
    first = operands[0] if operands else None
    if name in _IDENTITIES:
        return first
    if isinstance(first, Weight) and len(operands) == 1:
        return _rearranged_weight(name, params, first)
    if isinstance(first, Data):
        return _rearranged_data(name, params, first, operands)
    return None


def _rearranged_weight(name: str, params: dict[str, Any], weight: Weight) -> Weight | None:
    if name == "transpose":
        return weight._replace(axes=tuple(weight.axes[i] for i in params["permutation"]))
    if name == "rev":
        flipped = frozenset(weight.axes[i] for i in params["dimensions"])
        return weight._replace(reversed_axes=weight.reversed_axes ^ flipped)
    return None


def _rearranged_data(
    name: str, params: dict[str, Any], data: Data, operands: list[Tracked]
) -> Data | None:
    indices = list(data.indices)
    if name == "slice":
        steps = params["strides"] or (1,) * len(indices)
        cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        indices = [i[slice(*cut)] for i, cut in zip(indices, cuts, strict=True)]
    elif name == "rev":
        for axis in params["dimensions"]:
            indices[axis] = indices[axis][::-1]
    elif name == "concatenate":
        axis = params["dimension"]
        parts = [part for part in operands if isinstance(part, Data)]
        if len(parts) < len(operands) or not all(_joins(data, part, axis) for part in parts):
            return None
        indices[axis] = np.concatenate([part.indices[axis] for part in parts])
    else:
        return None
    return data._replace(indices=tuple(indices))


def _joins(first: Data, part: Data, axis: int) -> bool:
    """Whether both arrays select the same entries of the same source except along ``axis``."""
    pairs = enumerate(zip(first.indices, part.indices, strict=True))
    same = all(i == axis or np.array_equal(x, y) for i, (x, y) in pairs)
    return first.source == part.source and same


def _linear_map(
    equation: JaxprEqn, position: int, weight: Weight, operands: list[Tracked]
) -> LinearMap | None:
    """Returns the linear map with which an operation applies a weight to the input, if any."""
    other = operands[1 - position] if len(operands) == 2 else None
    if not isinstance(other, Data):
        return None
    if equation.primitive.name == "dot_general":
        return _dense(equation, position, weight)
    if equation.primitive.name == "conv_general_dilated" and position == 1:
        return _convolution(equation, weight, other)
    return None


def _dense(equation: JaxprEqn, position: int, weight: Weight) -> Dense | None:
    contracted, batch = equation.params["dimension_numbers"]
    if batch[0] or not contracted[0] or weight.reversed_axes:
        return None
    # Contracted axes in the order of the input's axes.
    pairs = sorted(zip(contracted[1 - position], contracted[position], strict=True))
    axes = tuple(weight.axes[i] for _, i in pairs)
    return Dense(None if axes == tuple(range(len(weight.axes) - 1)) else axes)


def _convolution(equation: JaxprEqn, weight: Weight, data: Data) -> Convolution | None:
    p = equation.params
    layout = p["dimension_numbers"]
    _, channels, *spatial = layout.lhs_spec
    out, into, *window = (weight.axes[i] for i in layout.rhs_spec)
    flipped = weight.reversed_axes
    if p["batch_group_count"] != 1 or flipped not in (frozenset(), frozenset(window)):
        return None
    axes = (*window, into, out)
    shape = _shape(equation.invars[0])
    padding: Any = tuple((int(low), int(high)) for low, high in p["padding"])
    if any(len(np.unique(i)) < len(i) for i in data.indices):  # some inputs are repeated
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
    taps = tuple(_shape(equation.invars[1])[i] for i in layout.rhs_spec[2:])
    plain = all(pair == (0, 0) for pair in p["padding"]) and set(p["lhs_dilation"]) == {1}
    return found if plain and _is_wrapped(data, found, spatial, taps) else None


def _is_wrapped(
    data: Data, convolution: Convolution, spatial: Sequence[int], window: tuple[int, ...]
) -> bool:
    """Whether the data is its source, padded circularly as the convolution needs it."""
    axes = dict(zip(spatial, convolution.axes(window), strict=True))
    for i, indices in enumerate(data.indices):
        low, extent = 0, 1
        if i in axes:
            low, extent = axes[i].low, (axes[i].window - 1) * axes[i].kernel_dilation + 1
        expected = np.arange(-low, data.shape[i] - low + extent - 1) % data.shape[i]
        if not np.array_equal(indices, expected):
            return False
    return True
