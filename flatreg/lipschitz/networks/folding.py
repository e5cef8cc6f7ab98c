"""A scale of each channel behind a layer goes into its kernel: ‖diag(s)A‖ ≤ max|s|·‖A‖.

So BatchNorm in evaluation mode, which has a large scale where a channel hardly varies, does not
multiply the bound with the largest of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from flatreg.lipschitz.networks.rules import convolution_of, matrices
from flatreg.lipschitz.networks.values import Dependent, Known, Value
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.linear_maps import widened


class Layer(NamedTuple):
    """s⊙A(z) + c, A of a known kernel and s ≤ 1 in each channel.

    Attributes:
      axis: that of the channels.
      bound: ``scale ↦`` the bound of x ↦ scale⊙A(z), of a scale a channel.
    """

    axis: int
    bound: Callable[[jax.Array], jax.Array]


def layer_of(equation: JaxprEqn, operands: Sequence[Value]) -> Layer | None:
    """The layer, if the operation is a convolution or a dense one with its channels last."""
    z, other = operands[0], operands[-1]
    if not isinstance(z, Dependent) or not isinstance(other, Known):
        return None
    kernel = widened(other.value)
    if equation.primitive.name == "conv_general_dilated":
        operator = convolution_of(equation, operands)
        layout = equation.params["dimension_numbers"]
        if operator is None:
            return None
        outputs = layout.rhs_spec[0]
        shape = [-1 if i == outputs else 1 for i in range(kernel.ndim)]

        def convolution_bound(scale: jax.Array) -> jax.Array:
            scaled = kernel * scale.reshape(shape)
            bound: jax.Array = z.bound * spectral_norm_upper_bound(scaled, operator)
            return bound

        return Layer(layout.out_spec[1], convolution_bound)
    if equation.primitive.name == "dot_general":
        (_, contracting), (batch, _) = equation.params["dimension_numbers"]
        if batch or kernel.ndim - len(contracting) != 1:
            return None
        matrix = matrices(kernel, contracting)[0]  # (outputs, inputs)

        def dense_bound(scale: jax.Array) -> jax.Array:
            bound: jax.Array = z.bound * jnp.linalg.norm(scale[:, None] * matrix, 2)
            return bound

        aval: Any = equation.outvars[0].aval
        return Layer(len(aval.shape) - 1, dense_bound)
    return None


def behind(equation: JaxprEqn, operands: Sequence[Value]) -> Layer | None:
    """The layer, as it is after a known scale or shift."""
    dependent = next(operand for operand in operands if isinstance(operand, Dependent))
    layer: Layer | None = dependent.layer
    name = equation.primitive.name
    aval: Any = equation.outvars[0].aval
    if layer is None or aval.shape != dependent.shape:
        return None
    if name in {"add", "sub", "neg", "convert_element_type", "copy"}:
        return layer
    known = next((operand for operand in operands if isinstance(operand, Known)), None)
    if name not in {"mul", "div"} or known is None:
        return None
    sizes = jnp.broadcast_to(jnp.abs(widened(known.value)), aval.shape)
    others = [axis for axis in range(len(aval.shape)) if axis != layer.axis]
    scale = 1 / jnp.min(sizes, others) if name == "div" else jnp.max(sizes, others)
    return Layer(layer.axis, lambda further: layer.bound(further * scale))


def folded(layer: Layer, channels: int) -> jax.Array:
    """The bound of the layer as it is."""
    return layer.bound(jnp.ones(channels))
