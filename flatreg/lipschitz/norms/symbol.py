r"""The symbol of a convolution: its Fourier transform, whose supremum bounds the norm.

A convolution is a section of one on the unbounded grid, which Fourier transforms into
the matrices F(ω) = Σₜ K[t] e^(iωt): σ ≤ sup σ(F). With stride s and input dilation D the inputs
i = (s/g)m + a and the outputs o = (D/g)m′ − b, g = gcd(s, D), are channels a and b of a convolution
m − m′ = (t − low − bs − aD)·g/(sD) without stride (polyphase). Along an axis u*F(ω)v is a sum of
exponentials of degree d, the polyphase extent − 1. Turned so that it is real and maximal at ω₀ and
centered in frequency, it stays above M cos(d(ω − ω₀)/2) near ω₀ (Riesz), and one of N
equally spaced frequencies is within π/N of ω₀. So sup σ(F) ≤ max over the grid / ∏ cos(πd/2N), with
N > d. On a circle of N places, and on a section so short that N ≥ its length + d places hold it
without overlap, the operator is that of the circle, or a section of it, and the factor is 1.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.norms.gram import gram_bound
from flatreg.lipschitz.operators.convolution import Axis


def symbol_bound(blocks: jax.Array, axes: tuple[Axis, ...], tolerance: float) -> jax.Array:
    """The bound by the symbol, at most 1 + ``tolerance`` above its supremum."""
    share, gram_slack = (1 + tolerance) ** (0.7 / len(axes)), (1 + tolerance) ** 0.3 - 1
    phases, factors = zip(*(_phases(axis, share) for axis in axes), strict=True)
    largest = over_frequencies(blocks, phases, lambda x, y: gram_bound(x, y, gram_slack))
    return math.prod(factors) * largest


def symbol_maximum(blocks: jax.Array, axes: tuple[Axis, ...], tolerance: float) -> jax.Array:
    """The largest σ(F(ω)) on the grid of :func:`symbol_bound`, exactly: a lower bound of sup σ."""
    share = (1 + tolerance) ** (0.7 / len(axes))
    phases = [_phases(axis, share)[0] for axis in axes]
    return over_frequencies(blocks, phases, lambda x, y: jnp.max(_singular_values(x + 1j * y)))


def _singular_values(matrices: jax.Array) -> jax.Array:
    values: jax.Array = jnp.linalg.svd(matrices, compute_uv=False)
    return values


def over_frequencies(
    blocks: jax.Array,
    phases: Any,
    largest: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The maximum of ``largest`` of the real and imaginary parts of F, a row of the grid at a time.

    The kernel is real, so F(−ω) is the conjugate of F(ω), and half of the last axis suffices.
    """
    n = len(phases)
    a, b, t = "abc"[:n], "def"[:n], "uvw"[:n]
    operands = ",".join(("XYZ"[i] if i else "") + a[i] + b[i] + t[i] for i in range(n))
    grid = "XYZ"[1:n]
    formula = f"{operands},{t}igo->{grid}g{a}i{b}o"
    half = phases[-1][: len(phases[-1]) // 2 + 1]
    dtype = jnp.result_type(blocks.dtype, jnp.complex64)
    first, *others = [jnp.asarray(p, dtype) for p in (*phases[:-1], half)]
    rows = math.prod(p.shape[1] for p in phases) * blocks.shape[-3]
    columns = math.prod(p.shape[2] for p in phases) * blocks.shape[-1]

    def row(phase: jax.Array) -> jax.Array:
        precision = jax.lax.Precision.HIGHEST
        symbol = jnp.einsum(formula, phase, *others, blocks, precision=precision)
        symbol = symbol.reshape(-1, rows, columns)
        return largest(symbol.real, symbol.imag)

    return jnp.max(jax.lax.map(row, first))


def _phases(axis: Axis, share: float) -> tuple[np.ndarray[Any, Any], float]:
    """e^(iωq) as (frequencies, a, b, t), zero where no tap t leads from a to b, and the factor."""
    s, D = axis.stride, axis.input_dilation
    if axis.circular and axis.inputs is not None and axis.inputs * D % math.lcm(s, D):
        s = 1  # The steps do not close; what they skip only lowers the norm.
    g = math.gcd(s, D)
    a, b, t = np.ogrid[: s // g, : D // g, : axis.window]
    place = axis.kernel_dilation * t - axis.low % g - b * s - a * D
    valid, q = place % (s * D // g) == 0, place // (s * D // g)
    if not valid.any():
        return np.zeros((1, *place.shape)), 1.0
    q = q - q[valid].min()
    spread = max(int(np.gcd.reduce(q[valid])), 1)
    q = np.where(valid, q // spread, 0)
    degree = int(q.max())
    frequencies = math.ceil(math.pi * degree / (2 * math.acos(1 / share))) if degree else 1
    factor = 1 / math.cos(math.pi * degree / (2 * frequencies))
    exact = _closed_length(axis, s, D, degree, spread)
    if exact is not None and exact <= 1.25 * frequencies:  # worth it, for it is tighter
        frequencies, factor = exact, 1.0
    angles = 2 * np.pi * np.arange(frequencies) / frequencies
    return valid * np.exp(1j * angles[:, None, None, None] * q), factor


def _closed_length(axis: Axis, s: int, D: int, degree: int, spread: int) -> int | None:
    """Places of a circle that the operator, in polyphase, is on or is a section of."""
    if axis.inputs is None or axis.outputs is None:
        return None
    g = math.gcd(s, D)
    if axis.circular:
        period = axis.inputs * g // s
        return period // math.gcd(period, spread)
    # n places in a row touch at most so many blocks of p, and each class modulo spread its share.
    blocks = min((n + p - 2) // p + 1 for n, p in ((axis.inputs, s // g), (axis.outputs, D // g)))
    return -(-blocks // spread) + degree
