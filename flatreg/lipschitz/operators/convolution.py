"""Convolutions with any stride, padding, dilation and grouping, in one to three dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Padding: TypeAlias = Literal["SAME", "VALID", "CIRCULAR"] | Sequence[tuple[int, int]]
"""A padding mode, or one pair (before, after) per spatial axis."""


class Axis(NamedTuple):
    """One spatial axis of a convolution.

    Output o is y[o] = Σ K[t] x[i], summed over all taps t and inputs i with
    input_dilation·i = stride·o + kernel_dilation·t − low.

    Attributes:
      window: the number of taps t.
      inputs: the number of inputs i, or None for an axis that is infinite in both directions. If
        ``circular``, i is counted modulo this number.
      outputs: the number of outputs o, or None for an infinite axis.
      stride: the distance between neighboring outputs, in the formula above.
      input_dilation: the distance between neighboring inputs.
      kernel_dilation: the distance between neighboring taps.
      low: the padding before the first input.
      circular: whether the axis wraps around.
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
    """The linear map of a convolution with one to three spatial axes.

    The kernel has shape (*window, in / groups, out), as in Flax. A transposed convolution (Flax's
    ``ConvTranspose``, :func:`jax.lax.conv_transpose`) is a convolution whose ``input_dilation`` is
    the stride of that layer and whose padding is given as pairs. :func:`linear_maps` finds the maps
    of both kinds of layers.

    Attributes:
      input_shape: ``(*spatial, channels)``, without a batch axis. If all spatial sizes are None,
        the input is infinite in every direction. No input size with zeros as padding has a larger
        norm than this map, and no input size with circular padding, if the stride divides it.
      strides: one integer for all spatial axes, or one per axis.
      padding: "SAME", "VALID", "CIRCULAR", or one pair (before, after) per spatial axis.
        "CIRCULAR" wraps around at the ends, as in Flax's ``Conv``: output o is centered on input
        ``strides * o``.
      input_dilation: the distance between neighboring inputs, one integer or one per axis. A value
        of d inserts d − 1 zeros between neighboring inputs.
      kernel_dilation: the distance between neighboring taps, one integer or one per axis.
      feature_group_count: the number of groups of channels.
      kernel_axes: which axes of the given kernel are (*window, in, out), in this order. If None,
        the axes are already in this order.
      reverse: whether the window is applied in reverse order. In combination with swapped
        ``kernel_axes``, this corresponds to ``transpose_kernel=True`` in Flax.
    """

    input_shape: tuple[int | None, ...]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    input_dilation: int | Sequence[int] = 1
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    kernel_axes: tuple[int, ...] | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        """Checks the settings and converts sequences to tuples, which makes the map hashable."""
        spatial = len(self.input_shape) - 1
        if not 1 <= spatial <= 3:
            raise ValueError(
                f"input_shape must be (*spatial, channels) with one to three spatial axes, got "
                f"{self.input_shape}: for images, write Convolution((32, 32, 3), …), without the "
                "batch axis."
            )
        *sizes, channels = self.input_shape
        if channels is None or (None in sizes and set(sizes) != {None}):
            raise ValueError(
                f"input_shape must have either all spatial sizes or none of them, got "
                f"{self.input_shape}: for inputs of every size, write "
                f"Convolution({(*(None,) * spatial, channels or 16)}, …)."
            )
        shape = tuple(None if n is None else int(n) for n in self.input_shape)
        object.__setattr__(self, "input_shape", shape)
        for name in ("strides", "input_dilation", "kernel_dilation"):
            value = getattr(self, name)
            values = (value,) * spatial if isinstance(value, int) else tuple(map(int, value))
            if len(values) != spatial or min(values) < 1:
                raise ValueError(
                    f"{name} must be one positive integer or {spatial} of them, got {value}: "
                    f"for example, write {name}={(1,) * spatial}."
                )
            object.__setattr__(self, name, values)
        if self.is_infinite and set(self._per_axis("input_dilation")) != {1}:
            raise ValueError(
                "a transposed convolution of an infinite input is not supported: pass the spatial "
                "sizes in input_shape, for example Convolution((32, 32, 16), …)."
            )
        if isinstance(self.padding, str):
            valid = self.padding.upper() in ("SAME", "VALID", "CIRCULAR")
            object.__setattr__(self, "padding", self.padding.upper())
            valid &= self.padding == "CIRCULAR" or set(self._per_axis("input_dilation")) == {1}
        else:
            valid = len(self.padding) == spatial and all(len(pair) == 2 for pair in self.padding)
            pairs = tuple(tuple(map(int, pair)) for pair in self.padding)
            object.__setattr__(self, "padding", pairs)
        if not valid:
            raise ValueError(
                f"padding must be 'SAME', 'VALID' (both without input_dilation), 'CIRCULAR' or "
                f"{spatial} pairs, got {self.padding!r}: write padding={((1, 1),) * spatial}."
            )

    @property
    def is_infinite(self) -> bool:
        """Whether the input is infinite in every direction."""
        return self.input_shape[0] is None

    def input_shape_of(self, kernel: Any) -> tuple[int, ...]:
        """Returns the shape of x."""
        del kernel
        if self.is_infinite:
            raise ValueError(
                f"{self} has an infinite input, of which only the spectral norm can be bounded: "
                "pass the spatial sizes in input_shape, for example Convolution((32, 32, 16), …)."
            )
        return tuple(n for n in self.input_shape if n is not None)

    def input_axes(self, kernel: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel that are summed over for one output."""
        return tuple(range(kernel.ndim) if self.kernel_axes is None else self.kernel_axes)[:-1]

    def oriented(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel as (*window, in / groups, out) after checking that it fits."""
        spatial, channels = len(self.input_shape) - 1, self.input_shape[-1]
        if kernel.ndim == spatial + 2:
            if self.kernel_axes is not None:
                kernel = kernel.transpose(self.kernel_axes)
            groups = self.feature_group_count
            if kernel.shape[-2] * groups == channels and kernel.shape[-1] % groups == 0:
                return kernel[(slice(None, None, -1),) * spatial] if self.reverse else kernel
        raise ValueError(
            f"{self} does not fit a kernel of shape {kernel.shape}. The kernel must be (*window, "
            f"in / groups, out) with {spatial} window axes: write Convolution((*spatial, in), …), "
            "or let flatreg.lipschitz.linear_maps(model.apply, params, x) find the map."
        )

    def axes(self, window: tuple[int, ...]) -> tuple[Axis, ...]:
        """Returns the spatial axes for a kernel with this window shape."""
        strides, dilations = self._per_axis("strides"), self._per_axis("input_dilation")
        kernel_dilations = self._per_axis("kernel_dilation")
        extents = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilations, strict=True)]
        if self.is_infinite:
            settings = zip(window, strides, kernel_dilations, strict=True)
            return tuple(Axis(k, stride=s, kernel_dilation=d) for k, s, d in settings)
        sizes = self.input_shape_of(None)[:-1]
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
        """Applies the map to one example."""
        kernel = self.oriented(kernel)
        spatial = len(self.input_shape_of(kernel)) - 1
        dtype = jnp.promote_types(kernel.dtype, x.dtype)
        kernel, x = kernel.astype(dtype), x.astype(dtype)
        dilation, axes = self._per_axis("input_dilation"), self.axes(kernel.shape[:-2])
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
            self._per_axis("strides"),
            pairs,
            lhs_dilation=dilation,
            rhs_dilation=self._per_axis("kernel_dilation"),
            dimension_numbers=(f"N{layout}C", f"{layout}IO", f"N{layout}C"),
            feature_group_count=self.feature_group_count,
            precision=jax.lax.Precision.HIGHEST,
        )
        return y[0]

    def _per_axis(self, name: str) -> tuple[int, ...]:
        """Returns a setting that ``__post_init__`` has converted to one integer per axis."""
        values: tuple[int, ...] = getattr(self, name)
        return values
