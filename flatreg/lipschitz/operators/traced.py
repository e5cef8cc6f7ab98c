"""What is known about the arrays of a traced function: parameters, inputs and constants.

A parameter is followed through casts, transpositions, reversals, products with constants, and the
selection of one layer of a stack. The entries of arrays that depend on the input are tracked as
long as operations only rearrange them or pad them: the array is ``source[np.ix_(i₁, i₂, …)]`` with
known indices. In this way, padding is recognized, regardless of the slices and concatenations that
produced it.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend.core import JaxprEqn

PADDING = -1  # the index of an entry that does not depend on the input

# Operations that keep every entry where it is.
IDENTITIES = {
    *("convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint"),
    *("reshard", "pvary", "name"),
}
# Operations that move entries, after which an array is still a multiple of its factors.
_MOVES = {
    *("transpose", "reshape", "squeeze", "broadcast_in_dim", "rev", "slice", "dynamic_slice"),
    *("neg", "pad", "concatenate"),
}

_ARITHMETIC = {"mul", "div", "add", "sub"}


class Weight(NamedTuple):
    """A parameter, or one layer of it, with its axes in some order.

    Attributes:
      path: the path of the parameter.
      axes: the axes of the parameter, in the order of the array's axes.
      reversed_axes: the axes of the parameter that are reversed.
      layers: the axes of the parameter along which the array holds one entry.
      mask: the constants that it has been multiplied by, as a function that returns an array with
        as many axes as the parameter. None: it has not been multiplied.
    """

    path: str
    axes: tuple[int, ...]
    reversed_axes: frozenset[int] = frozenset()
    layers: frozenset[int] = frozenset()
    mask: Callable[[], Any] | None = None


class Derived(NamedTuple):
    """An array that is computed from parameters and constants.

    Attributes:
      changes: the operation that changed each parameter first, by the path of the parameter.
      axes: the axes of the array along which it may vary.
    """

    changes: tuple[tuple[str, str], ...]
    axes: frozenset[int]


class Factor(NamedTuple):
    """A parameter that an array has been multiplied by, or whose rows have been looked up.

    Attributes:
      path: the path of the parameter.
      axes: the axes of the array along which the parameter varies.
      is_lookup: whether the array consists of rows of the parameter.
    """

    path: str
    axes: frozenset[int]
    is_lookup: bool = False


class Data(NamedTuple):
    """An array that depends on the inputs: ``source[np.ix_(*indices)]``.

    Attributes:
      source: identifies the array whose entries these are.
      shape: the shape of the source.
      indices: the selected indices along each axis of the source, or ``PADDING``.
      producer: the path of the convolution kernel that produced the array, as long as the array has
        only been padded or reshaped since then.
      is_split: whether a reshape has increased the number of axes since then.
      factors: the parameters that the array has just been multiplied by.
      repeats: whether the array contains entries of an earlier one several times, as overlapping
        patches do, and has only been rearranged since then.
    """

    source: object
    shape: tuple[int, ...]
    indices: tuple[np.ndarray[Any, Any], ...]
    producer: str | None = None
    is_split: bool = False
    factors: tuple[Factor, ...] = ()
    repeats: bool = False


class Constant(NamedTuple):
    """An array that depends on neither inputs nor parameters.

    Attributes:
      value: returns the array. It is computed only if a parameter is multiplied by it.
    """

    value: Callable[[], Any]


Tracked: TypeAlias = Weight | Derived | Data | Constant | None
"""What is known about an array. None: it is a constant whose value is unknown."""


def shape_of(variable: Any) -> tuple[int, ...]:
    """Returns the shape of a variable of a jaxpr."""
    shape: tuple[int, ...] = variable.aval.shape
    return shape


def new_data(variable: Any) -> Data:
    """Returns an input-dependent array of which only the shape is known."""
    shape = shape_of(variable)
    return Data(object(), shape, tuple(np.arange(n) for n in shape))


def constant(value: Any) -> Tracked:
    """Returns a captured array or a literal. The value of a tracer is unknown."""
    return None if isinstance(value, jax.core.Tracer) else Constant(lambda: value)


def folded(equation: JaxprEqn, operands: Sequence[Tracked]) -> list[Tracked]:
    """Returns the outputs of an operation on constants."""
    known = [operand for operand in operands if isinstance(operand, Constant)]
    if len(known) < len(operands):
        return [None] * len(equation.outvars)

    @functools.cache
    def outputs() -> Any:
        with jax.ensure_compile_time_eval():
            values = [operand.value() for operand in known]
            out = equation.primitive.bind(*values, **equation.params)
        return out if equation.primitive.multiple_results else [out]

    def output(i: int) -> Constant:
        return Constant(lambda: outputs()[i])

    return [output(i) for i in range(len(equation.outvars))]


def paths_of(operand: Tracked, operation: str) -> tuple[tuple[str, str], ...]:
    """Returns the parameters in an array that depends on parameters only, with their changes."""
    if isinstance(operand, Weight):
        return ((operand.path, operation),)
    return operand.changes if isinstance(operand, Derived) else ()


def derived(equation: JaxprEqn, operands: Sequence[Tracked]) -> list[Tracked]:
    """Returns the outputs of an operation on parameters and constants."""
    name = equation.primitive.name
    changes = dict(change for x in operands for change in paths_of(x, name))
    outputs: list[Tracked] = []
    for variable in equation.outvars:
        sizes = shape_of(variable)
        axes = [i for i, n in enumerate(sizes) if n > 1]
        if name == "broadcast_in_dim":
            kept = equation.params["broadcast_dimensions"]
            axes = [i for i, n in zip(kept, shape_of(equation.invars[0]), strict=True) if n > 1]
        outputs.append(Derived(tuple(changes.items()), frozenset(axes)))
    return outputs


def rearranged(equation: JaxprEqn, operands: Sequence[Tracked]) -> Tracked:
    """Returns the output of an operation that only rearranges or pads entries, else None."""
    name, params = equation.primitive.name, equation.params
    first = operands[0] if operands else None
    if name in IDENTITIES:
        return first
    if isinstance(first, Weight):
        return _rearranged_weight(equation, first, operands)
    if name == "mul" and isinstance(operands[1], Weight):
        return _times(operands[1], first, shape_of(equation.invars[0]))
    if name == "select_n" and isinstance(first, Constant) and len(operands) == 3:
        return _selected(equation, operands)
    if name == "concatenate" or isinstance(first, Data):
        return _rearranged_data(name, params, operands, equation)
    return None


def _rearranged_weight(
    equation: JaxprEqn, weight: Weight, operands: Sequence[Tracked]
) -> Weight | None:
    name, params = equation.primitive.name, equation.params
    if name == "transpose":
        return weight._replace(axes=tuple(weight.axes[i] for i in params["permutation"]))
    if name == "rev":
        flipped = frozenset(weight.axes[i] for i in params["dimensions"])
        return weight._replace(reversed_axes=weight.reversed_axes ^ flipped)
    if name in ("mul", "div"):
        factor = operands[1]
        if name == "div" and isinstance(factor, Constant):
            divisor = factor.value
            factor = Constant(lambda: 1 / np.asarray(divisor()))
        return _times(weight, factor, shape_of(equation.invars[1]))
    if name == "squeeze":
        gone = {weight.axes[i] for i in params["dimensions"]}
        kept = tuple(axis for axis in weight.axes if axis not in gone)
        return weight._replace(axes=kept, layers=weight.layers | gone)
    picks = not any(isinstance(x, Data) for x in operands[1:])
    if name in ("slice", "dynamic_slice") and picks:
        sizes = zip(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), strict=True)
        cut = {axis: new for axis, (old, new) in zip(weight.axes, sizes, strict=True) if old != new}
        if set(cut.values()) <= {1}:
            return weight._replace(layers=weight.layers | cut.keys())
    if name == "gather" and picks and len(shape_of(equation.invars[1])) == 1:
        numbers = params["dimension_numbers"]
        gone = {weight.axes[i] for i in numbers.collapsed_slice_dims}
        kept = tuple(axis for axis in weight.axes if axis not in gone)
        whole = dict(zip(weight.axes, shape_of(equation.invars[0]), strict=True))
        taken = dict(zip(weight.axes, params["slice_sizes"], strict=True))
        if all(whole[axis] == taken[axis] for axis in kept):
            return weight._replace(axes=kept, layers=weight.layers | gone)
    return None


def _selected(equation: JaxprEqn, operands: Sequence[Tracked]) -> Weight | None:
    """Returns ``jnp.where(mask, parameter, 0)`` as the product of a parameter and a mask."""
    chosen, *cases = operands
    which = [i for i, case in enumerate(cases) if isinstance(case, Weight)]
    if len(which) != 1 or not isinstance(chosen, Constant):
        return None
    weight, other, condition = cases[which[0]], cases[1 - which[0]], chosen.value
    if not isinstance(weight, Weight) or not isinstance(other, Constant) or np.any(other.value()):
        return None
    mask = Constant(lambda: np.asarray(condition()) == bool(which[0]))
    return _times(weight, mask, shape_of(equation.invars[0]))


def _times(weight: Weight, factor: Tracked, shape: tuple[int, ...]) -> Weight | None:
    """Returns the product of a parameter and a constant of this shape."""
    if not isinstance(factor, Constant):
        return None
    value, before = factor.value, weight.mask
    if not set(weight.layers).isdisjoint(weight.axes):
        return None

    def mask() -> Any:
        array = np.asarray(value(), np.float64)
        if shape:
            axes = list(weight.axes)
            flips = tuple(i for i, axis in enumerate(axes) if axis in weight.reversed_axes)
            array = np.flip(array, flips).transpose(np.argsort(axes))
            array = np.expand_dims(array, tuple(sorted(weight.layers)))
        return array if before is None else array * before()

    return weight._replace(mask=mask)


def _rearranged_data(
    name: str, params: dict[str, Any], operands: Sequence[Tracked], equation: JaxprEqn
) -> Data | None:
    if name == "concatenate":
        return _concatenated(params["dimension"], operands, equation)
    data = operands[0]
    assert isinstance(data, Data)
    indices = list(data.indices)
    if name == "slice":
        steps = params["strides"] or (1,) * len(indices)
        cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        indices = [i[slice(*cut)] for i, cut in zip(indices, cuts, strict=True)]
    elif name == "rev":
        for axis in params["dimensions"]:
            indices[axis] = indices[axis][::-1]
    elif name == "pad" and not isinstance(operands[1], Data):
        indices = [_padded(i, *c) for i, c in zip(indices, params["padding_config"], strict=True)]
    else:
        return None
    return data._replace(indices=tuple(indices), factors=moved_factors(equation, data))


def _padded(indices: Any, low: int, high: int, interior: int) -> Any:
    """Returns the indices after ``jax.lax.pad``, which also removes entries if negative."""
    low, high, steps = int(low), int(high), int(interior) + 1
    spread = np.full(max((len(indices) - 1) * steps + 1, 0), PADDING)
    spread[::steps] = indices
    spread = np.pad(spread, (max(low, 0), max(high, 0)), constant_values=PADDING)
    return spread[max(-low, 0) : len(spread) - max(-high, 0)]


def _concatenated(axis: int, operands: Sequence[Tracked], equation: JaxprEqn) -> Data | None:
    """Returns arrays joined along an axis. Parts that do not depend on the input are padding."""
    parts = [part for part in operands if isinstance(part, Data)]
    if not parts or not all(_joins(parts[0], part, axis) for part in parts):
        return None
    sizes = [shape_of(variable)[axis] for variable in equation.invars]
    joined = [
        part.indices[axis] if isinstance(part, Data) else np.full(size, PADDING)
        for part, size in zip(operands, sizes, strict=True)
    ]
    indices = list(parts[0].indices)
    indices[axis] = np.concatenate(joined)
    return parts[0]._replace(indices=tuple(indices), factors=moved_factors(equation, *parts))


def repeats(equation: JaxprEqn, operands: Sequence[Tracked]) -> bool:
    """Whether the output of an operation contains entries of its input several times.

    This is known for overlapping patches, which are convolutions with constant kernels that select
    one entry each, for shifted copies that are concatenated, and for what is rearranged afterwards.
    """
    name, parts = equation.primitive.name, [x for x in operands if isinstance(x, Data)]
    if name in _MOVES | _ARITHMETIC and any(part.repeats for part in parts):
        return True
    if name == "concatenate" and equation.params["dimension"] > 0:
        pairs = itertools.combinations(parts, 2)
        return any(x.source == y.source and _overlap(x, y) for x, y in pairs)
    if name == "conv_general_dilated" and isinstance(operands[1], Constant):
        return _takes_overlapping_patches(equation, np.asarray(operands[1].value()))
    return False


def _overlap(x: Data, y: Data) -> bool:
    """Whether two arrays contain the same entry of their source."""
    pairs = zip(x.indices, y.indices, strict=True)
    return all(np.any(np.isin(i[i != PADDING], j)) for i, j in pairs)


def _takes_overlapping_patches(equation: JaxprEqn, kernel: np.ndarray[Any, Any]) -> bool:
    p = equation.params
    out, _, *window = p["dimension_numbers"].rhs_spec
    selects = np.count_nonzero(np.moveaxis(kernel, out, 0).reshape(kernel.shape[out], -1), 1) == 1
    channels = shape_of(equation.invars[0])[p["dimension_numbers"].lhs_spec[1]]
    overlaps = any(
        (distance * dilation) % stride == 0
        for axis, stride, dilation in zip(
            window, p["window_strides"], p["rhs_dilation"], strict=True
        )
        for distance in range(1, kernel.shape[axis])
    )
    return bool(selects.all()) and kernel.shape[out] > channels and overlaps


def _joins(first: Data, part: Data, axis: int) -> bool:
    """Whether both arrays select the same entries of the same source except along ``axis``."""
    pairs = enumerate(zip(first.indices, part.indices, strict=True))
    same = all(i == axis or np.array_equal(x, y) for i, (x, y) in pairs)
    return first.source == part.source and same


def moved_factors(equation: JaxprEqn, *operands: Data) -> tuple[Factor, ...]:
    """Returns the factors of the output of an operation that moves entries or scales them."""
    name = equation.primitive.name
    factors = dict.fromkeys(factor for operand in operands for factor in operand.factors)
    if not factors or name not in _MOVES:
        return ()
    if name == "transpose":
        place = {old: new for new, old in enumerate(equation.params["permutation"])}
        return tuple(f._replace(axes=frozenset(place[i] for i in f.axes)) for f in factors)
    everywhere = frozenset(range(len(shape_of(equation.outvars[0]))))
    same_axes = name in ("rev", "slice", "dynamic_slice", "neg", "pad", "concatenate")
    return tuple(f if same_axes else f._replace(axes=everywhere) for f in factors)
