"""Counts collectives and operations in a compiled program, from XLA's text of it.

The program is a set of computations. A `while` instruction calls its body once per iteration, so
what is inside a loop, such as that over the layers of a network, counts as often as the loop
repeats. XLA's own cost analysis counts it once. Both branches of a condition are counted.

A count is NaN if it is inside a loop whose number of iterations cannot be read.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# How the TPU's compiler names the fusion of an all-reduce with the choice of a device's own part.
REDUCE_SCATTER_FUSION = "all-reduce-scatter"
_BYTES = {"pred": 1, "token": 0, "opaque": 0}  # of types without their number of bits in the name
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Array(NamedTuple):
    """The type of an array: its dtype as XLA writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of the array, on one device."""
        found = re.search(r"\d+", self.dtype)
        bits = 8 * _BYTES[self.dtype] if self.dtype in _BYTES else int(found[0]) if found else 0
        return math.ceil(math.prod(self.shape) * bits / 8)


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: its name.
      result: the arrays of its result.
      opcode: what it does, for example `all-gather`.
      operands: the names of its operands.
      attributes: the rest of the line, for example `channel_id=1, dimensions={0}`.
    """

    name: str
    result: list[Array]
    opcode: str
    operands: list[str]
    attributes: str


class Collective(NamedTuple):
    """The collectives of one kind in a program.

    Attributes:
      count: how many are executed.
      bytes: the size of the whole arrays, not of one device's part of them, over all executions.
    """

    count: float  # type: ignore[assignment]  # hides tuple.count, as Optax does
    bytes: float


class Program:
    """A compiled program.

    Args:
      text: the text of the program, from `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations, self.entry = _computations(text)
        self.executions: dict[str, float] = defaultdict(float)
        self.loops: dict[str, str] = {}  # the loop, or the whole program, that a computation is in
        self._execute(self.entry, 1, self.entry)

    def collectives(self) -> dict[str, Collective]:
        """Returns the collectives by their kind.

        The TPU's compiler splits an asynchronous collective into several fusions, whose collectives
        have the same channel. They count as one.
        """
        largest: dict[tuple[str, ...], Collective] = {}
        for computation, one in self._instructions():
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            if computation.startswith(REDUCE_SCATTER_FUSION):
                kind = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            key: tuple[str, ...] = kind, computation, one.name
            loop = self.loops[computation]
            if channel and computation != loop and kind != "reduce-scatter":
                key = kind, loop, channel[0]  # in a fusion
            times = self.executions[computation]
            found = Collective(times, times * self._bytes(computation, one))
            largest[key] = max(found, largest.get(key, found))
        totals: dict[str, Collective] = {}
        for (kind, *_), found in largest.items():
            count, size = totals.get(kind, (0, 0))
            totals[kind] = Collective(count + found.count, size + found.bytes)
        return totals

    def flops(self, *, loops: bool = True) -> float:
        """Returns the operations of all matrix products and convolutions on one device.

        Args:
          loops: whether what is in a loop counts once per iteration; if not, it counts once.
        """
        total = 0.0
        for computation, one in self._instructions():
            if one.opcode in ("dot", "convolution"):
                operands = [self._array(computation, name) for name in one.operands]
                flops = _dot if one.opcode == "dot" else _convolution
                times = self.executions[computation] if loops else 1
                total += times * flops(one, operands[0], operands[1])
        return total

    def _instructions(self) -> Iterator[tuple[str, Instruction]]:
        for computation in self.executions:
            for one in self.computations[computation].values():
                yield computation, one

    def _execute(self, computation: str, times: float, loop: str) -> None:
        """Adds executions of a computation and of all that it calls."""
        self.executions[computation] += times
        self.loops[computation] = loop
        for one in self.computations[computation].values():
            called = _CALLS.findall(one.attributes)
            for names in _BRANCHES.findall(one.attributes):
                called += re.findall(r"%([\w.\-]+)", names)
            each = times * self._iterations(one) if one.opcode == "while" else times
            for name in called:
                if name in self.computations:
                    self._execute(name, each, name if one.opcode == "while" else loop)

    def _iterations(self, loop: Instruction) -> float:
        """The iterations of a loop: XLA's note, or else the bound of a counter from zero."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        steps = self.computations[condition[1]] if condition else {}
        for one in steps.values():
            if one.opcode == "compare" and "direction=LT" in one.attributes:
                bound = steps.get(one.operands[1])
                if bound is not None and bound.opcode == "constant":
                    return int(bound.attributes)
        return math.nan

    def _array(self, computation: str, name: str) -> Array:
        return self.computations[computation][name].result[0]

    def _bytes(self, computation: str, one: Instruction) -> int:
        """The size of the arrays that a collective combines, on all devices together."""
        steps = self.computations[computation]
        operands = sum(a.bytes for name in one.operands for a in steps[name].result)
        result = sum(array.bytes for array in one.result)
        if one.opcode in ("all-gather-start", "collective-permute-start"):
            result -= operands  # The result of a start contains its operands, too.
        return max(operands, result)


def _computations(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Returns the instructions of each computation by their names, and the name of the first one.

    The name of the first one is that of the computation where the program begins.
    """
    found: dict[str, dict[str, Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif body := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line):
            current[body[1]] = _instruction(body[1], body[2])
    return found, entry


def _instruction(name: str, text: str) -> Instruction:
    """Reads `TYPE opcode(operands), attributes`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result = [
        Array(dtype, tuple(map(int, shape.split(",") if shape else [])))
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", text[:end])
    ]
    rest = text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", inside)
    opcode = rest[:opening]
    return Instruction(
        name, result, opcode, operands, inside if opcode == "constant" else rest[closing + 1 :]
    )


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"The parenthesis at {opening} is not closed: {text[:200]}")


def _dot(one: Instruction, left: Array, right: Array) -> float:
    """2 × the entries of the result × the length of the sum."""
    del right
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    summed = [left.shape[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
    return 2.0 * math.prod(one.result[0].shape) * math.prod(summed)


def _convolution(one: Instruction, left: Array, right: Array) -> float:
    """2 × the products of an input that exists (no padding) and an entry of the kernel.

    The TPU's compiler writes matrix products as convolutions, and batched ones with strides and
    padding so that most of the window lies outside of the input.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None, one
    inputs, kernel, outputs = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    products = 1.0
    for label in sorted(set(outputs) - {"b", "f"}):
        sizes = (
            left.shape[inputs.index(label)],
            right.shape[kernel.index(label)],
            one.result[0].shape[outputs.index(label)],
        )
        products *= _pairs(*sizes, fields, int(label))
    batch = one.result[0].shape[outputs.index("b")]
    features = one.result[0].shape[outputs.index("f")]
    summed = right.shape[kernel.index("i")]
    if groups:
        batch = left.shape[inputs.index("b")] // int(groups[1])
    return 2.0 * products * batch * features * summed


def _pairs(size: int, extent: int, outputs: int, fields: dict[str, str], axis: int) -> int:
    """The pairs of a place of the output and an entry of the kernel that meet an input."""

    def field(name: str, default: str) -> str:
        values = fields[name].split("x") if name in fields else []
        return values[axis] if values else default

    stride, dilation, spread = (
        int(field(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    low = int(field("pad", "0_0").split("_")[0])
    place = np.arange(outputs)[:, None] * stride + np.arange(extent) * dilation - low
    inside = (place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)
    return int(inside.sum())
