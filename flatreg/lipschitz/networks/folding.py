"""Folds a scale per channel that follows a layer into the layer's kernel.

‖diag(s) A‖ ≤ max |s| · ‖A‖, and the left-hand side can be much smaller. For example, BatchNorm in
evaluation mode has a large scale for a channel that hardly varies. Without folding, the bound would
be multiplied by the largest scale of all channels.
"""

import jax
import jax.numpy as jnp

from flatreg.lipschitz.networks.rules import convolution_of, matrices
from flatreg.lipschitz.networks.values import Dependent, Known, Operation, ScaledLayer
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.linear import float_kernel


def foldable_layer(operation: Operation) -> ScaledLayer | None:
    """Returns the layer if the operation is a convolution or a product with channels last."""
    z, other = operation.operands[0], operation.operands[-1]
    if not isinstance(z, Dependent) or not isinstance(other, Known):
        return None
    kernel = float_kernel(other.value)
    if operation.name == "conv_general_dilated":
        return _convolution(operation, z, kernel)
    if operation.name == "dot_general":
        return _dense(operation, z, kernel)
    return None


def _convolution(operation: Operation, z: Dependent, kernel: jax.Array) -> ScaledLayer | None:
    linear_map = convolution_of(operation)
    if linear_map is None:
        return None
    layout = operation.params["dimension_numbers"]
    shape = [-1 if axis == layout.rhs_spec[0] else 1 for axis in range(kernel.ndim)]

    def bound(scale: jax.Array) -> jax.Array:
        norm = spectral_norm_upper_bound(kernel * scale.reshape(shape), linear_map)
        bound: jax.Array = z.bound * norm
        return bound

    return ScaledLayer(layout.out_spec[1], bound)


def _dense(operation: Operation, z: Dependent, kernel: jax.Array) -> ScaledLayer | None:
    (_, contracting), (batch, _) = operation.params["dimension_numbers"]
    if batch or kernel.ndim - len(contracting) != 1:
        return None
    matrix = matrices(kernel, contracting)[0]  # (outputs, inputs)

    def bound(scale: jax.Array) -> jax.Array:
        bound: jax.Array = z.bound * jnp.linalg.norm(scale[:, None] * matrix, 2)
        return bound

    return ScaledLayer(len(operation.output.shape) - 1, bound)


def after_scale_or_shift(operation: Operation) -> ScaledLayer | None:
    """Returns the layer of the operand after an operation that scales or shifts it."""
    operand = operation.dependent[0]
    layer, shape = operand.layer, operation.output.shape
    if layer is None or shape != operand.shape:
        return None
    if operation.name in {"add", "sub", "neg", "convert_element_type", "copy"}:
        return layer
    known = operation.known
    if operation.name not in {"mul", "div"} or known is None:
        return None
    sizes = jnp.broadcast_to(jnp.abs(float_kernel(known.value)), shape)
    others = [axis for axis in range(len(shape)) if axis != layer.axis]
    scale = 1 / jnp.min(sizes, others) if operation.name == "div" else jnp.max(sizes, others)
    return ScaledLayer(layer.axis, lambda further: layer.bound(further * scale))
