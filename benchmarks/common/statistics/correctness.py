"""Per-example correctness, stored with one bit per example."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def packed(correct: ArrayLike) -> NDArray[np.uint8]:
    """Returns correctness of shape (..., examples) as bytes of shape (..., ⌈examples / 8⌉)."""
    array = np.asarray(correct)
    if array.dtype != np.bool_:
        raise TypeError(f"Correctness must be boolean, not {array.dtype}: pass predictions == y.")
    return np.packbits(array, axis=-1)


def unpacked(bits: ArrayLike, examples: int) -> NDArray[np.bool_]:
    """Returns the correctness that `packed` stored.

    Args:
      bits: the bytes, of shape (..., ⌈examples / 8⌉).
      examples: the number of examples.
    """
    array = np.asarray(bits, np.uint8)
    if array.shape[-1] != -(-examples // 8):
        raise ValueError(
            f"{array.shape[-1]} bytes do not hold {examples} examples, which take "
            f"{-(-examples // 8)}. Pass the number of examples that were packed."
        )
    return np.unpackbits(array, axis=-1, count=examples).astype(bool)
