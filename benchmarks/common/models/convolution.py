"""Convolution as a matrix product of patches and kernel, for CPUs.

On a CPU, XLA's convolution is many times slower inside control flow (jax-ml/jax #12868), which the
measures of flatness and `flatreg.every` use. A matrix product is equally fast inside and outside.
"""

from typing import Any

import jax
import jax.numpy as jnp


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
