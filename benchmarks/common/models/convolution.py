"""Convolution as a matrix product of patches and kernel, for CPUs.

On a CPU, XLA's convolution is many times slower inside control flow (jax-ml/jax #12868), which the
measures of flatness and `flatreg.every` use: 40 times for the gradient of two layers. A matrix
product is equally fast inside and outside. At the top level of a program, XLA's convolution takes
two thirds of the time for a gradient, and for a Hessian-vector product 40% of the time and half the
memory (`python -m benchmarks.step_cost --alternatives`). `suited` therefore chooses for each
program.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

CONTROL_FLOW = ("cond", "scan", "while")
T = TypeVar("T")


def by_patches(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """Computes a 2-D convolution, for `conv_general_dilated=` of `flax.linen.Conv`.

    Args:
      x: the inputs, of shape (batch, height, width, in).
      kernel: the kernel, of shape (height, width, in, out).
      strides: one stride per spatial axis.
      padding: `"SAME"`, `"VALID"`, or a pair (low, high) per spatial axis.
      **settings: the other arguments of `jax.lax.conv_general_dilated`. Dilation and groups must
        have their defaults; `precision` is used.
    """
    dilations = *settings.pop("lhs_dilation"), *settings.pop("rhs_dilation")
    groups = settings.pop("feature_group_count")
    if any(dilation != 1 for dilation in dilations) or groups != 1:
        raise NotImplementedError("by_patches does not support dilation or groups.")
    *window, inputs, outputs = kernel.shape
    pads = padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (
        (size - extent) // stride + 1
        for size, extent, stride in zip(x.shape[1:3], window, strides, strict=True)
    )
    patches = [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (len(x), i + (height - 1) * strides[0] + 1, j + (width - 1) * strides[1] + 1, inputs),
            (1, *strides, 1),
        )
        for i in range(window[0])
        for j in range(window[1])
    ]
    rows, matrix = jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs)
    return jnp.matmul(rows, matrix, precision=settings.get("precision"))


def suited(
    trace: Callable[[nn.Module], tuple[T, jax.stages.Traced]], model: nn.Module
) -> tuple[T, jax.stages.Traced]:
    """Traces a program with XLA's convolution, or with patches if XLA's would be slow in it.

    Args:
      trace: returns anything that belongs to the program of a network, and the traced program.
      model: the network. Only one that convolves by patches has a choice.

    Returns:
      What `trace` returns for the network that suits the program.
    """
    if getattr(model, "convolve", None) is not by_patches:
        return trace(model)
    found = trace(model.clone(convolve=jax.lax.conv_general_dilated))
    return trace(model) if any(map(_is_slow, _convolutions(found[1].jaxpr.jaxpr))) else found


def _convolutions(jaxpr: Jaxpr, inside: bool = False) -> Iterator[tuple[JaxprEqn, bool]]:
    """Yields the convolutions of a program, and whether they are inside control flow."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            yield equation, inside
        is_program = lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))  # noqa: E731
        for part in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(part):
                part = part.jaxpr if isinstance(part, ClosedJaxpr) else part
                yield from _convolutions(part, inside or name in CONTROL_FLOW)


def _is_slow(convolution: tuple[JaxprEqn, bool]) -> bool:
    """Returns whether XLA is slow on a CPU: in control flow, or with groups, as under `vmap`."""
    equation, inside = convolution
    groups = equation.params["feature_group_count"] * equation.params["batch_group_count"]
    return inside or groups > 1
