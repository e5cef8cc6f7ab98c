"""What a kernel is after ``optax.apply_updates``, which rounds it to its dtype.

The functions compute in at least float32 and round with ``jax.lax.reduce_precision``. XLA may
remove a cast to bfloat16 that is followed by a cast back, but not this operation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatreg.lipschitz.operators.linear import float_kernel

finfo: Callable[[Any], Any] = jnp.finfo


def applied(before: jax.Array, update: jax.Array) -> jax.Array:
    """Returns the parameter after ``optax.apply_updates``, in at least float32."""
    total = float_kernel(before) + float_kernel(update)
    total = rounded(total, jnp.promote_types(before.dtype, update.dtype))
    return rounded(total, before.dtype)


def representable(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns x in ``dtype``, rounded before the cast, so that the cast is exact."""
    return rounded(x, dtype).astype(dtype)


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns x rounded to values of a floating-point ``dtype``, in the dtype of x."""
    target, own = finfo(dtype), finfo(x.dtype)
    if target.nmant >= own.nmant:
        return x
    result: jax.Array = jax.lax.reduce_precision(x, target.nexp, target.nmant)
    if target.nexp < own.nexp:
        # reduce_precision turns numbers below the smallest normal one into zero.
        smallest = float(target.smallest_subnormal)
        fixed = jnp.round(x / smallest) * smallest
        result = jnp.where(jnp.abs(x) < float(target.smallest_normal), fixed, result)
    return result
