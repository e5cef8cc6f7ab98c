"""Folds a scale per channel that follows a layer into the layer's kernel.

‖diag(s) A‖ ≤ max |s| · ‖A‖, and the left-hand side can be much smaller. For example, BatchNorm in
evaluation mode has a large scale for a channel that hardly varies. Without folding, the bound would
be multiplied by the largest scale of all channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flatreg.lipschitz.networks.deferred import Norm
from flatreg.lipschitz.networks.rules import convolution_of, matrices
from flatreg.lipschitz.networks.values import (
    Dependent,
    Known,
    Operation,
    ScaledLayer,
    array_module,
    wide,
)

KEEPS_LAYER = {"add", "sub", "neg"}


def foldable_layer(
    operation: Operation,
) -> tuple[int, Callable[[jax.Array], Norm]] | None:
    """Returns the channel axis of a layer and its norm as a function of a scale per channel.

    None if the operation is not a convolution or a product with channels last.
    """
    z, other = operation.operands[0], operation.operands[-1]
    if not isinstance(z, Dependent) or not isinstance(other, Known):
        return None
    if operation.name == "conv_general_dilated":
        return _convolution(operation, wide(other.value))
    if operation.name == "dot_general":
        return _dense(operation, wide(other.value))
    return None


def _convolution(
    operation: Operation, kernel: jax.Array
) -> tuple[int, Callable[[jax.Array], Norm]] | None:
    linear_map = convolution_of(operation)
    if linear_map is None:
        return None
    layout = operation.params["dimension_numbers"]
    shape = [-1 if axis == layout.rhs_spec[0] else 1 for axis in range(kernel.ndim)]
    return layout.out_spec[1], lambda scale: Norm(kernel * scale.reshape(shape), linear_map)


def _dense(
    operation: Operation, kernel: jax.Array
) -> tuple[int, Callable[[jax.Array], Norm]] | None:
    (_, contracting), (batch, _) = operation.params["dimension_numbers"]
    if batch or kernel.ndim - len(contracting) != 1:
        return None
    matrix = matrices(kernel, contracting)  # (1, outputs, inputs)
    return len(operation.output.shape) - 1, lambda scale: Norm(scale[:, None] * matrix)


def scaled(operation: Operation, layer: ScaledLayer) -> Any:
    """Returns the scale per channel after a product or a quotient, or None for other operations.

    A factor that also varies along other axes is replaced by its largest size in each channel.
    """
    operand, known = operation.dependent[0], operation.known
    shape = operation.output.shape
    is_scale = operation.name == "mul" or (operation.name == "div" and operation.position == 0)
    if not is_scale or known is None or shape != operand.shape:
        return None
    size = wide(known.value)
    xp = array_module(size)
    sizes = xp.broadcast_to(xp.abs(size), shape)
    others = tuple(axis for axis in range(len(shape)) if axis != layer.axis)
    with np.errstate(divide="ignore"):
        is_quotient = operation.name == "div"
        factor = 1 / xp.min(sizes, others) if is_quotient else xp.max(sizes, others)
    return factor if layer.scale is None else layer.scale * factor
