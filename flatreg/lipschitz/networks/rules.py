"""Rules for how much an operation on one value can stretch its differences, in the 2-norm.

:func:`gain` returns a number with ‖op(z) − op(z′)‖ ≤ gain · ‖z − z′‖ for all z and z′, or None for
operations without a bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.networks.deferred import Norm
from flatreg.lipschitz.networks.values import Dependent, Known, Operation, array_module, wide
from flatreg.lipschitz.norms.upper_bounds import svd_bound
from flatreg.lipschitz.operators.convolution import Convolution

# Operations with gain 1: they move entries, drop entries or add constant entries, or apply a
# function φ with |φ′| ≤ 1 to each entry.
_GAIN_ONE = """
    reshape squeeze expand_dims transpose rev slice dynamic_slice split copy copy_p stop_gradient
    reduce_precision device_put sharding_constraint pad dynamic_update_slice concatenate
    add add_any sub neg abs max min clamp select_n tanh sin cos atan asinh reduce_max reduce_min
    stack unstack scatter scatter-add
"""
GAIN_ONE = set(_GAIN_ONE.split())
# Elementwise operations, whose operands may be broadcast.
ELEMENTWISE = {"add", "add_any", "sub", "max", "min", "mul", "div", "select_n", "clamp"}
# The positions of the operands that may depend on x, if an operation does not allow all of them.
OPERANDS = {
    "dynamic_slice": {0},
    "dynamic_update_slice": {0, 1},
    "clamp": {1},
    "div": {0},
    "pad": {0},
    "gather": {0},
    "scatter": {0},
    "scatter-add": {0},
}


def gain(operation: Operation) -> Any:
    """Returns the gain of an operation on one value that depends on x: a number, a norm or None."""
    name, position = operation.name, operation.position
    if position not in OPERANDS.get(name, {position}):
        return None
    broadcast = math.sqrt(copies(operation)) if name in ELEMENTWISE else 1.0
    if name in GAIN_ONE:
        return broadcast
    rule = RULES.get(name)
    own = None if rule is None else rule(operation)
    return own if own is None or isinstance(own, Norm) else broadcast * own


def matrices(kernel: Any, contracting: Sequence[int], batch: Sequence[int] = ()) -> jax.Array:
    """Returns a kernel of ``dot_general`` with shape (batches, outputs, inputs)."""
    kernel = wide(kernel)
    shape = np.shape(kernel)
    free = [i for i in range(kernel.ndim) if i not in (*contracting, *batch)]
    moved: jax.Array = kernel.transpose((*batch, *free, *contracting))
    batches, rows, columns = (
        math.prod(shape[i] for i in axes) for axes in (batch, free, contracting)
    )
    return moved.reshape(batches, rows, columns)


def convolution_of(operation: Operation) -> Convolution | None:
    """Returns the linear map of a convolution of x with a known kernel."""
    params = operation.params
    layout = params["dimension_numbers"]
    image, kernel = operation.operands[0], operation.operands[1]
    spatial = len(layout.lhs_spec) - 2
    if not isinstance(image, Dependent) or not isinstance(kernel, Known):
        return None
    if params["batch_group_count"] != 1 or spatial not in (1, 2, 3):
        return None
    outputs, inputs, *window = layout.rhs_spec
    _, channels, *space = layout.lhs_spec
    return Convolution(
        tuple(image.shape[axis] for axis in (*space, channels)),
        strides=params["window_strides"],
        padding=params["padding"],
        input_dilation=params["lhs_dilation"],
        kernel_dilation=params["rhs_dilation"],
        feature_group_count=params["feature_group_count"],
        kernel_axes=(*window, inputs, outputs),
    )


def copies(operation: Operation, operand: Dependent | None = None) -> float:
    """Returns the size of the output over that of an operand, by default the dependent operand."""
    operand = operation.dependent[0] if operand is None else operand
    ratio: float = math.prod(operation.output.shape) / max(math.prod(operand.shape), 1)
    return ratio


def _other(operation: Operation) -> Any:
    """Returns the known operand of an operation on two operands."""
    other = operation.operands[1 - operation.position]
    assert isinstance(other, Known)
    return other.value


def _cast(operation: Operation) -> float | None:
    """Returns 1 for a cast to a floating-point dtype. Rounding to integers cannot be bounded."""
    return 1.0 if jnp.issubdtype(operation.output.dtype, jnp.inexact) else None


def _multiply(operation: Operation) -> Any:
    other = wide(_other(operation))
    return array_module(other).max(abs(other), initial=0)


def _divide(operation: Operation) -> Any:
    other = wide(_other(operation))
    with np.errstate(divide="ignore"):
        return 1 / array_module(other).min(abs(other), initial=math.inf)


def _broadcast(operation: Operation) -> float:
    return math.sqrt(copies(operation))


def _sum(operation: Operation) -> float:
    return 1 / math.sqrt(copies(operation))  # √n for n summands


def _gather(operation: Operation) -> jax.Array:
    """Returns √n, where n is the largest number of copies of one entry in the output."""
    equation = operation.equation
    whole: Any = equation.invars[operation.position].aval
    indices = _other(operation)
    (copies,) = jax.linear_transpose(
        lambda z: equation.primitive.bind(z, indices, **equation.params),
        jax.ShapeDtypeStruct(whole.shape, jnp.result_type(float)),
    )(jnp.ones(operation.output.shape))
    most = wide(copies.max())
    return array_module(most).sqrt(most)  # type: ignore[no-any-return]


def _sort(operation: Operation) -> float | None:
    """Returns 1 for sorted values, and for values in the order of known keys.

    Sorting permutes the entries of each z, and the permutation only changes where entries are
    equal. Positions (``argsort``) and other values in the order of z jump there.
    """
    is_sorted = (
        operation.position == operation.output_index == 0 and operation.params["num_keys"] == 1
    )
    by_known_keys = operation.position >= operation.params["num_keys"]
    return 1.0 if is_sorted or by_known_keys else None


def _top_k(operation: Operation) -> float | None:
    """Returns 1 for the largest values. Their positions jump."""
    return 1.0 if operation.output_index == 0 else None


def _length(operation: Operation) -> int:
    """Returns the number of entries along the axis of a cumulative operation."""
    length: int = operation.output.shape[operation.params["axis"]]
    return length


def _cumulative_sum(operation: Operation) -> float:
    """Returns the largest singular value of the triangular matrix of ones."""
    return 1 / (2 * math.sin(math.pi / (4 * _length(operation) + 2)))


def _dense(operation: Operation) -> Norm:
    """Returns the largest singular value of the known factor, over all batch entries."""
    other = 1 - operation.position
    contracting, batch = operation.params["dimension_numbers"]
    known = operation.operands[other]
    assert isinstance(known, Known)
    key = "dense", known.key, tuple(contracting[other]), tuple(batch[other])
    return Norm(matrices(known.value, contracting[other], batch[other]), key=key)


def _convolution(operation: Operation) -> Norm | None:
    """Returns the certified upper bound on the norm of the convolution at this input size."""
    linear_map, kernel = convolution_of(operation), operation.operands[1]
    if linear_map is None or not isinstance(kernel, Known):
        return None
    return Norm(wide(kernel.value), linear_map, ("convolution", kernel.key, linear_map))


def _windows(operation: Operation) -> list[np.ndarray[Any, Any]]:
    """Returns a 0/1 matrix (windows, entries) per axis: which entries each window holds."""
    params = operation.params
    found = []
    for axis, extent in enumerate(operation.dependent[0].shape):
        low, high = params["padding"][axis]
        base, dilation = params["base_dilation"][axis], params["window_dilation"][axis]
        spread = (params["window_dimensions"][axis] - 1) * dilation + 1
        starts = range(
            0, low + (extent - 1) * base + 1 + high - spread + 1, params["window_strides"][axis]
        )
        places = low + base * np.arange(extent)
        offsets = places[None, :] - np.asarray(starts, int)[:, None]
        found.append((offsets >= 0) & (offsets < spread) & (offsets % dilation == 0))
    return [inside.astype(float) for inside in found]


def _window_sum(operation: Operation) -> float:
    """Returns the product of the norms along the axes, because the map is a Kronecker product."""
    return math.prod(float(svd_bound(a)) for a in _windows(operation))


def _window_max(operation: Operation) -> float:
    """Returns √n, where n ≤ ∏⌈k/s⌉ is the largest number of windows that share an entry."""
    return math.sqrt(math.prod(a.sum(0).max() for a in _windows(operation)))


RULES: dict[str, Callable[[Operation], Any]] = {
    "convert_element_type": _cast,
    "logistic": lambda _: 0.25,
    "erf": lambda _: 2 / math.sqrt(math.pi),
    "erfc": lambda _: 2 / math.sqrt(math.pi),
    "mul": _multiply,
    "div": _divide,
    "broadcast_in_dim": _broadcast,
    "tile": _broadcast,
    "sort": _sort,
    "top_k": _top_k,
    "cumsum": _cumulative_sum,
    "cummax": lambda operation: math.sqrt(_length(operation)),
    "cummin": lambda operation: math.sqrt(_length(operation)),
    "reduce_sum": _sum,
    "gather": _gather,
    "dot_general": _dense,
    "conv_general_dilated": _convolution,
    "reduce_window_sum": _window_sum,
    "reduce_window_max": _window_max,
    "reduce_window_min": _window_max,
}
