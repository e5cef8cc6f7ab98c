"""Convolution as a product of patches and kernel, for CPUs.

XLA's own convolution runs many times slower on a CPU inside of control flow, where measures of
flatness iterate and `flatreg.every` skips; jax-ml/jax #12868. This one is as fast there as outside.
"""

from typing import Any

import jax
import jax.numpy as jnp


def by_patches(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """2-D convolution of (batch, height, width, in) with (height, width, in, out).

    Takes `flax.linen.Conv`'s place for `jax.lax.conv_general_dilated`, without dilation and groups.
    """
    dilations = *settings.pop("lhs_dilation"), *settings.pop("rhs_dilation")
    groups = settings.pop("feature_group_count")
    if any(dilation != 1 for dilation in dilations) or groups != 1:
        raise NotImplementedError("by_patches knows neither dilation nor groups.")
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
    patches, matrix = jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs)
    return jnp.matmul(patches, matrix, precision=settings.get("precision"))
