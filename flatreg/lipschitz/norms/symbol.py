r"""An upper bound on the norm of a convolution: the supremum of its Fourier transform, the symbol.

**Symbol.** A convolution on a finite input is a section of the convolution on the infinite grid.
The Fourier transform turns the latter into the matrices F(ω) = Σₜ K[t] e^(iωt). Hence
σ ≤ sup σ(F(ω)).

**Stride and dilation.** With stride s, input dilation D and g = gcd(s, D), write the inputs as
i = (s/g)m + a and the outputs as o = (D/g)m′ − b. With a and b as additional channels, this is a
convolution without stride (the polyphase form), with m − m′ = (t − low − bs − aD)·g/(sD).

**Grid.** For fixed vectors u and v, u*F(ω)v is a sum of exponentials of degree d along each axis,
where d + 1 is the extent of the polyphase kernel. Let M be its largest modulus, attained at ω₀.
Multiply the sum by a phase such that it is real at ω₀, and shift its frequencies to be symmetric
about 0. Then, near ω₀, its real part is at least M cos(d(ω − ω₀)/2) (Riesz). One of N equally
spaced frequencies is within π/N of ω₀. Therefore sup σ(F) ≤ (max of σ(F) over the grid) / ∏
cos(πd/2N), for N > d.

**Rounding.** An entry of the computed F(ω) is a sum over the taps t. If at most k roundings with a
relative error of ε contribute to it, its error is at most √2((1 + ε)ᵏ − 1) Σₜ |K[t]|. The norm of
the matrix of these sums bounds the error of σ(F(ω)) at every frequency.

**Exact grids.** The factor is 1 in two cases: if the axis is a circle of N places, or if the axis
is so short that a circle of N ≥ length + d places contains it without overlap. In these cases, the
convolution is the convolution on the circle, or a section of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.norms.gram import eps_of, gram_bound, module_of
from flatreg.lipschitz.operators.convolution import Axis

Array: TypeAlias = np.ndarray[Any, Any]


class Grid(NamedTuple):
    """The frequencies along one axis.

    Attributes:
      phases: e^(iωq), with shape (frequencies, a, b, t). An entry is zero if tap t does not connect
        input channel a with output channel b.
      factor: the supremum is at most this factor times the maximum over the grid.
    """

    phases: Array
    factor: float


def symbol_bound(blocks: jax.Array, axes: tuple[Axis, ...], tolerance: float) -> jax.Array:
    """Returns an upper bound on the norm of a convolution, computed from its symbol.

    Args:
      blocks: the kernel, with shape (*window, in / groups, groups, out / groups), an array of JAX
        or NumPy.
      axes: the spatial axes of the convolution.
      tolerance: the bound is at most 1 + ``tolerance`` times the supremum of σ(F(ω)).
    """
    gram_slack = (1 + tolerance) ** 0.3 - 1
    grids = _grids(axes, tolerance)
    largest = _maximum(blocks, grids, lambda x, y: gram_bound(x, y, gram_slack))
    return math.prod(grid.factor for grid in grids) * (largest + _rounding_error(blocks, grids))


def symbol_maximum(blocks: jax.Array, axes: tuple[Axis, ...], tolerance: float) -> jax.Array:
    """Returns the largest σ(F(ω)) on the grid of :func:`symbol_bound`, which is at most sup σ(F).

    Args:
      blocks: the kernel, with shape (*window, in / groups, groups, out / groups).
      axes: the spatial axes of the convolution.
      tolerance: determines the grid.
    """
    grids = _grids(axes, tolerance)
    return _maximum(blocks, grids, lambda x, y: jnp.max(_singular_values(x + 1j * y)))


def _grids(axes: tuple[Axis, ...], tolerance: float) -> list[Grid]:
    """Returns the frequencies along each axis; the product of their factors is within tolerance."""
    largest_factor = (1 + tolerance) ** (0.7 / len(axes))
    return [_grid(axis, largest_factor) for axis in axes]


def _singular_values(matrices: jax.Array) -> jax.Array:
    values: jax.Array = jnp.linalg.svd(matrices, full_matrices=False, compute_uv=False)
    return values


def _maximum(
    blocks: jax.Array,
    grids: Sequence[Grid],
    largest: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Returns the maximum over the grid of ``largest(real part of F, imaginary part of F)``.

    One row of the grid is computed at a time. The kernel is real, so F(−ω) is the conjugate of
    F(ω), and half of the frequencies along the last axis are enough.
    """
    xp = module_of(blocks)
    phases = [grid.phases for grid in grids]
    phases[-1] = phases[-1][: len(phases[-1]) // 2 + 1]
    first, *others = phases

    def largest_in_row(phase: jax.Array) -> jax.Array:
        symbol = _symbol(blocks, phase, others)
        return largest(symbol.real, symbol.imag)

    complex_first = xp.asarray(first, _complex(blocks))
    if xp is np:
        in_rows = xp.asarray([*map(largest_in_row, complex_first)])
    else:
        in_rows = jax.lax.map(largest_in_row, complex_first)
    maximum: jax.Array = xp.max(in_rows)
    return maximum


def _symbol(blocks: jax.Array, phase: jax.Array, others: Sequence[Any]) -> jax.Array:
    """Returns F as matrices (frequencies · groups, rows, columns).

    Args:
      blocks: the kernel.
      phase: the phases along the first axis at one frequency.
      others: the phases along the other axes.
    """
    # For two axes the formula is 'adu,Ybev,uvigo->Ygabideo' with frequencies Y, taps u, v, groups
    # g, input channels a, b, i, output channels d, e, o.
    n = 1 + len(others)
    a, b, t = "abc"[:n], "def"[:n], "uvw"[:n]
    operands = ",".join(("XYZ"[i] if i else "") + a[i] + b[i] + t[i] for i in range(n))
    frequencies = "XYZ"[1:n]
    formula = f"{operands},{t}igo->{frequencies}g{a}i{b}o"
    xp = module_of(blocks)
    options = {"optimize": True} if xp is np else {"precision": jax.lax.Precision.HIGHEST}
    phases = [phase, *(xp.asarray(p, _complex(blocks)) for p in others)]
    rows = math.prod(p.shape[-3] for p in phases) * blocks.shape[-3]
    columns = math.prod(p.shape[-2] for p in phases) * blocks.shape[-1]
    symbol: jax.Array = xp.einsum(formula, *phases, blocks, **options).reshape(-1, rows, columns)
    return symbol


def _complex(blocks: jax.Array) -> Any:
    # Not that of JAX, which has complex128 only with jax_enable_x64.
    return np.result_type(blocks.dtype, np.complex64)


def _rounding_error(blocks: jax.Array, grids: Sequence[Grid]) -> jax.Array:
    """Returns a bound on the error of the largest σ(F(ω)) from the rounding of F."""
    xp, n = module_of(blocks), len(grids)
    first, *others = [grid.phases[:1] for grid in grids]  # at ω = 0, where they are 0 or 1
    sizes = abs(blocks if xp is np else jax.lax.stop_gradient(blocks))
    sizes = _symbol(sizes, xp.asarray(first[0], _complex(blocks)), others).real
    if 0 in sizes.shape:
        return xp.zeros((), blocks.dtype)  # type: ignore[no-any-return]
    # The norm is at most the root of the largest sum of a row times that of a column.
    norm = xp.sqrt(xp.max(xp.sum(sizes, -1)) * xp.max(xp.sum(sizes, -2)))
    eps = eps_of(blocks)
    # A complex product has four roundings, and so have the phases.
    roundings = 2 * math.prod(blocks.shape[:n]) + 8 * (n + 1)
    sums = math.exp(sum(sizes.shape[-2:]) * eps)  # the errors of the norm
    error: jax.Array = 1.5 * math.expm1(roundings * eps) * sums * norm
    return error


def _grid(axis: Axis, largest_factor: float) -> Grid:
    """Returns enough frequencies along an axis that their factor is at most the largest one."""
    s, D = axis.stride, axis.input_dilation
    if axis.circular and axis.inputs is not None and axis.inputs * D % math.lcm(s, D):
        s = 1  # The stride does not fit the circle. Omitting outputs can only lower the norm.
    g = math.gcd(s, D)
    a, b, t = np.ogrid[: s // g, : D // g, : axis.window]
    place = axis.kernel_dilation * t - axis.low % g - b * s - a * D
    valid, q = place % (s * D // g) == 0, place // (s * D // g)
    if not valid.any():
        return Grid(np.zeros((1, *place.shape)), 1.0)
    q = q - q[valid].min()
    spread = max(int(np.gcd.reduce(q[valid])), 1)
    q = np.where(valid, q // spread, 0)
    degree = int(q.max())
    frequencies = math.ceil(math.pi * degree / (2 * math.acos(1 / largest_factor))) if degree else 1
    factor = 1 / (math.cos(math.pi * degree / (2 * frequencies)) - 1e-15)  # rounded up
    exact = _circle_length(axis, s, D, degree, spread)
    if exact is not None and exact <= 1.25 * frequencies:  # tighter, and hardly more expensive
        frequencies, factor = exact, 1.0
    turns = np.arange(frequencies)[:, None, None, None] * q % frequencies / frequencies
    return Grid(valid * np.exp(2j * np.pi * turns), factor)


def _circle_length(axis: Axis, s: int, D: int, degree: int, spread: int) -> int | None:
    """Returns the length of a circle on which the polyphase form is exact, if there is one."""
    if axis.inputs is None or axis.outputs is None:
        return None
    g = math.gcd(s, D)
    if axis.circular:
        period = axis.inputs * g // s
        return period // math.gcd(period, spread)
    # n consecutive places touch at most this many blocks of p. The blocks are divided among the
    # residue classes modulo spread.
    blocks = min((n + p - 2) // p + 1 for n, p in ((axis.inputs, s // g), (axis.outputs, D // g)))
    return -(-blocks // spread) + degree
