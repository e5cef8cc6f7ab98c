"""Convolutions of any stride, padding, dilation and grouping, in one to three dimensions."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Pairs: TypeAlias = tuple[tuple[int, int], ...]


class Axis(NamedTuple):
    """One spatial axis: y[o] = Σₜ K[t] x[i], input_dilation·i = stride·o + kernel_dilation·t − low.

    Attributes:
      window: number of taps t.
      inputs: number of i, None for an axis without ends; if ``circular``, i counts modulo it.
      outputs: number of o, None likewise.
      stride: see the formula.
      input_dilation: see the formula.
      kernel_dilation: see the formula.
      low: see the formula.
      circular: whether the axis is closed.
    """

    window: int
    inputs: int | None = None
    outputs: int | None = None
    stride: int = 1
    input_dilation: int = 1
    kernel_dilation: int = 1
    low: int = 0
    circular: bool = False


@dataclass(frozen=True)
class Convolution:
    """A convolution of one to three axes, as Flax lays it out: kernel (*window, in, out).

    A transposed convolution (Flax's ``ConvTranspose``, :func:`jax.lax.conv_transpose`) is one whose
    ``input_dilation`` is that layer's stride, with its padding as pairs; :func:`linear_maps` finds
    both.

    Attributes:
      input_shape: ``(*spatial, channels)``, without batch.
      strides: one for all axes or one an axis, and so are the dilations.
      padding: "SAME", "VALID", "CIRCULAR", or (before, after) an axis. "CIRCULAR" closes the axes,
        as Flax's ``Conv`` does: output o is centered on input strides·o.
      input_dilation: places between two inputs, counted from one.
      kernel_dilation: places between two taps, counted from one.
      feature_group_count: groups of channels; the kernel is (*window, in / groups, out).
      kernel_axes: the axes of the kernel that are (*window, in, out), if it lies otherwise.
      reverse: whether the window is applied back to front; with swapped ``kernel_axes`` this is
        ``transpose_kernel=True``.
    """

    input_shape: tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: str | Pairs = "SAME"
    input_dilation: int | tuple[int, ...] = 1
    kernel_dilation: int | tuple[int, ...] = 1
    feature_group_count: int = 1
    kernel_axes: tuple[int, ...] | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        """Normalizes sequences to tuples, so that equal maps are equal and hashable."""
        spatial = len(self.input_shape) - 1
        if not 1 <= spatial <= 3:
            raise ValueError(
                f"input_shape must be (*spatial, channels) with one to three spatial axes, got "
                f"{self.input_shape}: for images write Convolution((32, 32, 3), …), without batch."
            )
        object.__setattr__(self, "input_shape", tuple(map(int, self.input_shape)))
        for name in ("strides", "input_dilation", "kernel_dilation"):
            value = getattr(self, name)
            values = (value,) * spatial if isinstance(value, int) else tuple(map(int, value))
            if len(values) != spatial or min(values) < 1:
                raise ValueError(
                    f"{name} must be one positive integer or {spatial} of them, got {value}: "
                    f"write {name}={(1,) * spatial}."
                )
            object.__setattr__(self, name, values)
        if isinstance(self.padding, str):
            known = self.padding.upper() in ("SAME", "VALID", "CIRCULAR")
            object.__setattr__(self, "padding", self.padding.upper())
            known &= self.padding == "CIRCULAR" or set(self._each("input_dilation")) == {1}
        else:
            known = len(self.padding) == spatial and all(len(pair) == 2 for pair in self.padding)
            pairs = tuple(tuple(map(int, pair)) for pair in self.padding)
            object.__setattr__(self, "padding", pairs)
        if not known:
            raise ValueError(
                f"padding must be 'SAME', 'VALID' (both without input_dilation), 'CIRCULAR' or "
                f"{spatial} pairs, got {self.padding!r}: write padding={((1, 1),) * spatial}."
            )

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """The shape of x."""
        del kernel
        return self.input_shape

    def oriented(self, kernel: jax.Array) -> jax.Array:
        """The kernel as (*window, in / groups, out), which suits the input."""
        spatial, channels = len(self.input_shape) - 1, self.input_shape[-1]
        if kernel.ndim == spatial + 2:
            if self.kernel_axes is not None:
                kernel = kernel.transpose(self.kernel_axes)
            groups = self.feature_group_count
            if kernel.shape[-2] * groups == channels and kernel.shape[-1] % groups == 0:
                return jnp.flip(kernel, range(spatial)) if self.reverse else kernel
        raise ValueError(
            f"{self} does not fit a kernel of shape {kernel.shape}: it must be (*window, in / "
            f"groups, out) with {spatial} axes of the window. Write Convolution((*spatial, in), …) "
            "or let flatreg.lipschitz.linear_maps(model.apply, params, x) find it."
        )

    def axes(self, window: tuple[int, ...]) -> tuple[Axis, ...]:
        """Each spatial axis, for taps of this shape."""
        strides, dilations = self._each("strides"), self._each("input_dilation")
        kernel_dilations = self._each("kernel_dilation")
        extents = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilations, strict=True)]
        sizes = self.input_shape[:-1]
        if self.padding == "CIRCULAR":
            lengths = [n * d for n, d in zip(sizes, dilations, strict=True)]
            pairs: Any = [((k - 1) // 2, k // 2) for k in extents]
        else:
            lengths = [(n - 1) * d + 1 for n, d in zip(sizes, dilations, strict=True)]
            pairs = self.padding
            if isinstance(pairs, str):
                pairs = jax.lax.padtype_to_pads(lengths, extents, strides, pairs)
        axes = []
        for i, (low, high) in enumerate(pairs):
            outputs = max((lengths[i] + int(low) + int(high) - extents[i]) // strides[i] + 1, 0)
            steps = strides[i], dilations[i], kernel_dilations[i]
            circular = self.padding == "CIRCULAR"
            axes.append(Axis(window[i], sizes[i], outputs, *steps, int(low), circular))
        return tuple(axes)

    def apply(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """A(x) for one example."""
        kernel = self.oriented(kernel)
        spatial = len(self.input_shape) - 1
        dtype = jnp.promote_types(kernel.dtype, x.dtype)
        kernel, x = kernel.astype(dtype), x.astype(dtype)
        dilation, axes = self._each("input_dilation"), self.axes(kernel.shape[:-2])
        pairs: Any = self.padding
        if self.padding == "CIRCULAR":
            gaps = [(0, d - 1, d - 1) for d in dilation]
            x = jax.lax.pad(x, jnp.zeros((), dtype), [*gaps, (0, 0, 0)])
            extents = [(axis.window - 1) * axis.kernel_dilation for axis in axes]
            ends = [(a.low, e - a.low) for a, e in zip(axes, extents, strict=True)]
            x = jnp.pad(x, [*ends, (0, 0)], mode="wrap")
            pairs, dilation = "VALID", (1,) * spatial
        layout = "DHW"[-spatial:]
        y: jax.Array = jax.lax.conv_general_dilated(
            x[None],
            kernel,
            self._each("strides"),
            pairs,
            lhs_dilation=dilation,
            rhs_dilation=self._each("kernel_dilation"),
            dimension_numbers=(f"N{layout}C", f"{layout}IO", f"N{layout}C"),
            feature_group_count=self.feature_group_count,
            precision=jax.lax.Precision.HIGHEST,
        )
        return y[0]

    def _each(self, name: str) -> tuple[int, ...]:
        """A setting that ``__post_init__`` has made one number an axis."""
        values: tuple[int, ...] = getattr(self, name)
        return values
