"""How much one operation can stretch a difference of its arguments, in the 2-norm.

``gain(equation, operands, place)`` is a bound for an operation on one value z that depends on x,
‖op(z) − op(z′)‖ ≤ gain·‖z − z′‖, and ``combined`` for one on several. Both return None where there
is none: a product of two values that depend on x has no bound without one of the values themselves.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from flatreg._core.tree import widened
from flatreg.lipschitz.networks.values import Dependent, Known, Value
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.convolution import Convolution

# Nothing is stretched: entries are moved, left out or joined by constants, or |φ′| ≤ 1.
_UNIT = """
    reshape squeeze expand_dims transpose rev slice dynamic_slice split copy copy_p stop_gradient
    reduce_precision device_put sharding_constraint pad dynamic_update_slice concatenate
    add add_any sub neg abs max min clamp select_n tanh sin cos atan asinh reduce_max reduce_min
"""
UNIT = set(_UNIT.split())
# Entry by entry, on shapes that may be broadcast.
ELEMENTWISE = {"add", "add_any", "sub", "max", "min", "mul", "div", "select_n", "clamp"}
# Which operands may depend on x, where not all.
OPERANDS = {
    "dynamic_slice": {0},
    "dynamic_update_slice": {0, 1},
    "clamp": {1},
    "div": {0},
    "pad": {0},
    "gather": {0},
}


def gain(equation: JaxprEqn, operands: Sequence[Value]) -> Any:
    """The bound of an operation on one value that depends on x, None if there is none."""
    name = equation.primitive.name
    place = next(i for i, operand in enumerate(operands) if isinstance(operand, Dependent))
    if place not in OPERANDS.get(name, {place}):
        return None
    grown = math.sqrt(_growth(equation, operands[place])) if name in ELEMENTWISE else 1.0
    if name in UNIT:
        return grown
    rule = GAINS.get(name)
    return None if rule is None else _times(grown, rule(equation, operands, place))


def combined(equation: JaxprEqn, operands: Sequence[Value]) -> Any:
    """The bound of x ↦ op(z₁, z₂, …) from those of x ↦ zᵢ, None if there is none."""
    name = equation.primitive.name
    allowed = OPERANDS.get(name)
    bounds = []
    for i, operand in enumerate(operands):
        if isinstance(operand, Dependent):
            if allowed is not None and i not in allowed:
                return None
            grown = math.sqrt(_growth(equation, operand)) if name in ELEMENTWISE else 1.0
            bounds.append(grown * operand.bound)
    if name in {"add", "add_any", "sub"}:
        return sum(bounds)
    # Each entry of the result changes by at most the largest change of one entry of each zᵢ.
    if name in {"max", "min", "select_n", "concatenate", "dynamic_update_slice"}:
        return jnp.sqrt(sum(bound**2 for bound in bounds))
    return None


def _growth(equation: JaxprEqn, operand: Any) -> float:
    """How many copies of it the result has."""
    aval: Any = equation.outvars[0].aval
    copies: float = math.prod(aval.shape) / max(math.prod(operand.shape), 1)
    return copies


def _times(a: float, b: Any) -> Any:
    return None if b is None else a * b


def _only_floating(equation: JaxprEqn, operands: Sequence[Value], place: int) -> Any:
    aval: Any = equation.outvars[0].aval
    return 1.0 if jnp.issubdtype(aval.dtype, jnp.floating) else None


def _multiply(equation: JaxprEqn, operands: Sequence[Value], place: int) -> jax.Array:
    return jnp.max(jnp.abs(widened(_other(operands, place))))


def _divide(equation: JaxprEqn, operands: Sequence[Value], place: int) -> jax.Array:
    return 1 / jnp.min(jnp.abs(widened(_other(operands, place))))


def _other(operands: Sequence[Value], place: int) -> Any:
    other = operands[1 - place]
    assert isinstance(other, Known)
    return other.value


def _copies(equation: JaxprEqn, operands: Sequence[Value], place: int) -> float:
    return math.sqrt(_growth(equation, operands[place]))


def _sum(equation: JaxprEqn, operands: Sequence[Value], place: int) -> float:
    return 1 / math.sqrt(_growth(equation, operands[place]))  # √n for n summands


def _gather(equation: JaxprEqn, operands: Sequence[Value], place: int) -> jax.Array:
    """√(copies of an entry), the most that any has."""
    whole: Any = equation.invars[place].aval
    taken: Any = equation.outvars[0].aval
    indices = _other(operands, place)
    (copies,) = jax.linear_transpose(
        lambda z: equation.primitive.bind(z, indices, **equation.params),
        jax.ShapeDtypeStruct(whole.shape, jnp.result_type(float)),
    )(jnp.ones(taken.shape))
    return jnp.sqrt(copies.max())


def _dense(equation: JaxprEqn, operands: Sequence[Value], place: int) -> jax.Array:
    """σ_max of the constant, the largest over the axes that both have."""
    contracting, batch = equation.params["dimension_numbers"]
    constant = matrices(_other(operands, place), contracting[1 - place], batch[1 - place])
    return jnp.max(jnp.linalg.svd(constant, compute_uv=False))


def matrices(kernel: Any, contracting: Sequence[int], batch: Sequence[int] = ()) -> jax.Array:
    """A kernel of ``dot_general`` as (batches, outputs, inputs)."""
    kernel = widened(kernel)
    shape = np.shape(kernel)
    free = [i for i in range(kernel.ndim) if i not in (*contracting, *batch)]
    moved: jax.Array = kernel.transpose((*batch, *free, *contracting))
    batches, rows, columns = (
        math.prod(shape[i] for i in axes) for axes in (batch, free, contracting)
    )
    return moved.reshape(batches, rows, columns)


def _convolution(equation: JaxprEqn, operands: Sequence[Value], place: int) -> Any:
    """The operator on inputs of this size, by its certified upper bound."""
    operator, kernel = convolution_of(equation, operands), operands[1]
    if operator is None or not isinstance(kernel, Known):
        return None
    return spectral_norm_upper_bound(kernel.value, operator)


def convolution_of(equation: JaxprEqn, operands: Sequence[Value]) -> Convolution | None:
    """The linear map of a known kernel, if it is one of an image."""
    params = equation.params
    layout = params["dimension_numbers"]
    image, kernel = operands[0], operands[1]
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


def _windows(equation: JaxprEqn, operand: Any) -> list[np.ndarray[Any, Any]]:
    """Along each axis, which entries a window holds: (windows, entries), zeros and ones."""
    params = equation.params
    found = []
    for axis, extent in enumerate(operand.shape):
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


def _window_sum(equation: JaxprEqn, operands: Sequence[Value], place: int) -> float:
    """The operator is a Kronecker product, and so its norm the product of the axes' norms."""
    return math.prod(float(np.linalg.norm(a, 2)) for a in _windows(equation, operands[place]))


def _window_max(equation: JaxprEqn, operands: Sequence[Value], place: int) -> float:
    """√(windows that share an entry), at most ∏⌈k/s⌉ of them."""
    return math.sqrt(math.prod(a.sum(0).max() for a in _windows(equation, operands[place])))


GAINS: dict[str, Callable[[JaxprEqn, Sequence[Value], int], Any]] = {
    "convert_element_type": _only_floating,
    "logistic": lambda *_: 0.25,
    "erf": lambda *_: 2 / math.sqrt(math.pi),
    "erfc": lambda *_: 2 / math.sqrt(math.pi),
    "mul": _multiply,
    "div": _divide,
    "broadcast_in_dim": _copies,
    "reduce_sum": _sum,
    "gather": _gather,
    "dot_general": _dense,
    "conv_general_dilated": _convolution,
    "reduce_window_sum": _window_sum,
    "reduce_window_max": _window_max,
    "reduce_window_min": _window_max,
}
