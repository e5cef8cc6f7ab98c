"""Numbers that are computed at the end, when it is known which of them are needed.

The interpreter of a network describes each bound as a formula of earlier ones. The norms of the
layers are the only expensive numbers. They are computed last, and only those on which the result
depends. Norms of concrete kernels are computed with NumPy in float64, which compiles nothing. In a
traced function, layers of equal shape share one loop, which is compiled once.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.norms.gram import gram_bound
from flatreg.lipschitz.norms.upper_bounds import convolution_bound, svd_bound
from flatreg.lipschitz.operators.convolution import Convolution

SLACK = 1e-6  # the largest relative error of the norm of a traced matrix, apart from rounding


class Norm(NamedTuple):
    """The norm of a layer.

    Attributes:
      kernel: the kernel of a convolution, or matrices with shape (batches, outputs, inputs), of
        which the largest norm counts.
      linear_map: the linear map of the convolution, or None for matrices.
      key: equal for norms that are known to be equal, or None.
    """

    kernel: jax.Array
    linear_map: Convolution | None = None
    key: Hashable = None


class Formula(NamedTuple):
    """A number that is computed from earlier ones, whose indices are ``operands``.

    The operands are NumPy scalars if they are concrete, which compiles nothing.
    """

    function: Callable[..., Any]
    operands: tuple[int, ...]


class Deferred:
    """A list of numbers; each is a value, a norm or a formula of earlier numbers."""

    def __init__(self) -> None:
        self._numbers: list[Any] = []
        self._of_key: dict[Hashable, int] = {}

    def number(self, value: Any) -> int:
        """Adds a number or the norm of a layer and returns its index."""
        key = value.key if isinstance(value, Norm) else None
        if key is not None and key in self._of_key:
            return self._of_key[key]
        self._numbers.append(value)
        if key is not None:
            self._of_key[key] = len(self._numbers) - 1
        return len(self._numbers) - 1

    def formula(self, function: Callable[..., Any], *operands: int) -> int:
        """Adds ``function(*operands)`` and returns its index."""
        return self.number(Formula(function, operands))

    def evaluate(self, indices: Sequence[int], dtype: Any) -> list[jax.Array]:
        """Returns the values of some of the numbers in a dtype, rounded up.

        Norms are upper bounds already. All other values and operations have relative rounding
        errors of a few ε. The results are increased by the sum of all that they depend on, which is
        enough because no formula multiplies two numbers that depend on a third one.
        """
        needed = self._needed(indices)
        values = self._norms([i for i in needed if isinstance(self._numbers[i], Norm)])
        for i in needed:
            number = self._numbers[i]
            if isinstance(number, Formula):
                values[i] = number.function(*(values[j] for j in number.operands))
            elif i not in values:
                values[i] = number
        rounding = sum(_roundings(self._numbers[i]) * _eps(values[i]) for i in needed)
        finfo = np.finfo(dtype)
        increase, smallest = math.exp(rounding + 4 * float(finfo.eps)), float(finfo.tiny)
        results = []
        for value in (values[i] * increase for i in indices):
            xp = jnp if isinstance(value, jax.core.Tracer) else np
            positive = (value > 0) & (value < smallest)  # so small that it may become zero
            results.append(jnp.asarray(xp.where(positive, smallest, value), dtype))
        return results

    def _needed(self, indices: Sequence[int]) -> list[int]:
        """Returns the indices of the numbers on which some numbers depend, in order."""
        needed, remaining = set[int](), set(indices)
        while remaining:
            i = remaining.pop()
            needed.add(i)
            if isinstance(self._numbers[i], Formula):
                remaining |= set(self._numbers[i].operands) - needed
        return sorted(needed)

    def _norms(self, indices: Sequence[int]) -> dict[int, Any]:
        """Returns the norms of layers, computed in one loop for all layers of the same shape."""
        groups: dict[tuple[Any, Any, Convolution | None], list[int]] = {}
        for i in indices:
            kernel, linear_map, _ = self._numbers[i]
            groups.setdefault((kernel.shape, kernel.dtype, linear_map), []).append(i)
        values: dict[int, Any] = {}
        for (_, _, linear_map), group in groups.items():
            kernels = [self._numbers[i].kernel for i in group]
            traced = any(isinstance(kernel, jax.core.Tracer) for kernel in kernels)
            if traced:
                norms: Any = jax.lax.map(lambda x: _norm(x, linear_map), jnp.stack(kernels))  # noqa: B023
            else:
                with np.errstate(all="ignore"):  # NaN and infinity are results.
                    norms = [_norm(np.asarray(kernel), linear_map) for kernel in kernels]
            values.update(zip(group, norms, strict=True))
        return values


def _roundings(number: Any) -> int:
    """Returns how many times ε bounds the relative error of a number, apart from its operands."""
    if isinstance(number, Norm):
        return 0
    return 2 * len(number.operands) + 1 if isinstance(number, Formula) else 4


def _eps(value: Any) -> float:
    """Returns ε of the dtype of a number, which is float64 for numbers of Python."""
    return float(np.finfo(getattr(value, "dtype", np.float64)).eps)


def _norm(kernel: Any, linear_map: Convolution | None) -> Any:
    """Returns the norm of a layer, whose kernel is a tracer or an array of NumPy."""
    if isinstance(kernel, np.ndarray):
        kernel = kernel.astype(np.float64)
    if linear_map is not None:
        return convolution_bound(kernel, linear_map)
    return svd_bound(kernel) if isinstance(kernel, np.ndarray) else gram_bound(kernel, slack=SLACK)
