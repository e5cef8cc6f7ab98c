"""Functions of single entries, φ(z)ᵢ = φᵢ(zᵢ), bounded by interval arithmetic.

A function such as ``jnp.where(z > 0, z, a * z)`` cannot be bounded operation by operation, because
the condition jumps. It is followed back to the latest value z of which it is a function entry by
entry. The numbers at which a condition, a maximum or a minimum switches divide the line into
pieces. On each piece, interval arithmetic bounds the slope |φᵢ′|. If φ has the same limits from
both sides at every switch, and its value there, then the largest slope is its Lipschitz constant.

Only switches are compared that can be computed: a condition must compare functions that are affine
between the earlier switches, or that do not cross. Everything else is rejected with a reason.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.networks.rearrangements import is_identity, unchanged
from flatreg.lipschitz.networks.values import Dependent, Known, Operation, Value, array_module
from flatreg.lipschitz.norms.gram import eps_of

MOST_OPERATIONS = 60
MOST_SWITCHES = 12
MOST_ARGUMENTS = 3  # how many earlier values are tried as z
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
}


class Unverified(Exception):  # noqa: N818
    """The reason why a function of single entries cannot be bounded."""


class Range(NamedTuple):
    """The values φ(z) and the slopes φ′(z) for z in an interval, as arrays of their ends."""

    low: Any
    high: Any
    least: Any
    most: Any


class Piece(NamedTuple):
    """An interval of z between two switches, or a single switch."""

    low: Any
    high: Any

    @property
    def middle(self) -> Any:
        """A number inside the interval."""
        low, high = self
        below, above = high - 1 - np.abs(high), low + 1 + np.abs(low)
        between = np.where(np.isinf(high), above, low + (high - low) / 2)
        return np.where(np.isinf(low), np.where(np.isinf(high), 0.0, below), between)


def arguments(outputs: Sequence[Dependent]) -> Iterator[tuple[Dependent, list[Dependent]]]:
    """Yields earlier values z of which all outputs are functions entry by entry, latest first.

    Yields:
      z, and the values between z and the outputs, in the order of their computation.
    """
    frontier = {output.key: output for output in outputs}
    between: list[Dependent] = []
    found = 0
    while frontier and found < MOST_ARGUMENTS and len(between) <= MOST_OPERATIONS:
        if len(frontier) == 1 and between:
            (value,) = frontier.values()
            if jnp.issubdtype(value.dtype, jnp.floating):
                found += 1
                yield value, between[::-1]
        value = frontier.pop(max(frontier))
        operation = value.operation
        if operation is None or not _is_elementwise(operation, value):
            return
        between.append(value)
        frontier.update({operand.key: operand for operand in _operands(operation)})


def constant(z: Dependent, between: Sequence[Dependent], outputs: Sequence[Dependent]) -> Any:
    """Returns the largest √(Σ φ′²) over the outputs φ(z), which bounds them together.

    Raises:
      Unverified: if no bound can be verified.
    """
    if not all(jnp.issubdtype(output.dtype, jnp.floating) for output in outputs):
        raise Unverified
    with np.errstate(all="ignore"):
        return _constant(z, between, outputs)


def _constant(z: Dependent, between: Sequence[Dependent], outputs: Sequence[Dependent]) -> Any:
    switches: list[Any] = []
    for i, value in enumerate(between):
        if _difference(value) is None:
            continue
        for piece in _pieces(switches):
            root = _switch(z, between[:i], value, piece)
            if root is not None and not any(np.array_equal(root, old) for old in switches):
                switches.append(root)
        if len(switches) > MOST_SWITCHES:
            raise Unverified
    pieces = _pieces(switches)
    evaluations = [_Evaluation(z, between, piece) for piece in pieces]
    _check_continuity(pieces, evaluations, outputs, z.dtype)
    steepest: Any = np.float64(0)
    for piece, evaluation in zip(pieces, evaluations, strict=True):
        ranges = [evaluation.of(output) for output in outputs]
        squares = [_largest(_abs(r.least), _abs(r.most)) for r in ranges]
        joint = squares[0] if len(squares) == 1 else _root(sum(s * s for s in squares))
        inside = np.asarray(piece.low < piece.high)
        if inside.any():
            steepest = _largest(steepest, _where(inside, joint, 0.0))
    # A slope has at most two roundings per operation. They are covered unless terms cancel.
    rounding = 1 + 2 * len(between) * eps_of(steepest)
    if isinstance(steepest, jax.core.Tracer):
        return rounding * jnp.max(steepest)
    largest = float(np.max(steepest))
    if not math.isfinite(largest):
        raise Unverified
    return largest if largest == 1 else rounding * largest


def _is_elementwise(operation: Operation, value: Dependent) -> bool:
    known = operation.name in _FUNCTIONS or operation.name in _SPECIAL or is_identity(operation)
    if operation.name == "argmax":
        known = _stacked(operation) is not None
    return known and all(z.shape == value.shape for z in _operands(operation))


def _operands(operation: Operation) -> list[Dependent]:
    if is_identity(operation):
        return [unchanged(operation)]
    stacked = _stacked(operation)
    return operation.dependent if stacked is None else stacked.dependent


def _stacked(operation: Operation) -> Operation | None:
    """Returns the stack of conditions whose first true one is chosen, as in ``jnp.select``."""
    if operation.name != "argmax":
        return None
    stack, axes = operation.dependent[0].operation, tuple(operation.params["axes"])
    is_stack = stack is not None and stack.name == "stack" and axes == (stack.params["axis"],)
    return stack if is_stack and operation.dependent[0].dtype == bool else None


def _pieces(switches: Sequence[Any]) -> list[Piece]:
    """Returns the intervals between the switches, and the switches as intervals of length 0."""
    if not switches:
        return [Piece(np.float64(-np.inf), np.float64(np.inf))]
    ends = np.sort(np.stack(np.broadcast_arrays(*switches)), axis=0)
    edges = [np.full_like(ends[0], -np.inf), *ends, np.full_like(ends[0], np.inf)]
    pieces = []
    for low, high in itertools.pairwise(edges):
        pieces += [Piece(low, high), Piece(high, high)]
    return pieces[:-1]


def _difference(value: Dependent) -> tuple[Value, Value | float] | None:
    """Returns the two operands at whose equality an operation switches."""
    operation = value.operation
    assert operation is not None
    if operation.name in _COMPARISONS or operation.name in {"max", "min"}:
        first, second = operation.operands
        return first, second
    return (operation.operands[0], 0.0) if operation.name in {"abs", "sign"} else None


def _switch(z: Dependent, earlier: Sequence[Dependent], value: Dependent, piece: Piece) -> Any:
    """Returns the number in a piece at which an operation switches, or any number if none."""
    difference = _difference(value)
    assert difference is not None
    assert value.operation is not None
    inside = np.asarray(piece.low < piece.high)
    if not inside.any():
        return None
    evaluation = _Evaluation(z, earlier, piece)
    d = evaluation.gap(difference)
    optional = value.operation.name in {"max", "min", "abs"}
    if any(map(_is_traced, d)):
        if optional:
            return None
        raise Unverified("Its condition compares traced parameters; call it outside jax.jit.")
    affine = np.equal(d.least, d.most)
    if not np.all(affine | (d.low > 0) | (d.high < 0) | ~inside):
        if optional:
            return None
        raise Unverified("Its condition does not compare two affine functions of z.")
    if not np.any(affine & (d.least != 0)):
        return None
    middle = piece.middle
    at = evaluation.middle.gap(difference).low
    root = np.clip(middle - at / d.least, piece.low, piece.high)
    usable = np.isfinite(root) & affine & inside
    return np.where(usable, root, np.where(np.isfinite(piece.low), piece.low, middle))


def _check_continuity(
    pieces: Sequence[Piece],
    evaluations: "Sequence[_Evaluation]",
    outputs: Sequence[Dependent],
    dtype: Any,
) -> None:
    """Raises an error if an output jumps between two neighboring pieces, beyond rounding."""
    for piece, left, right in zip(pieces, evaluations, evaluations[1:], strict=False):
        switch = Piece(piece.high, piece.high)
        before, after = left.at(switch), right.at(switch)
        for output in outputs:
            a, b = before.of(output).low, after.of(output).low
            if _is_traced(a) or _is_traced(b):
                raise Unverified(
                    "Whether its branches agree depends on traced parameters; call it outside "
                    "jax.jit."
                )
            a, b, at = np.broadcast_arrays(a, b, piece.high)
            rounding = 8 * _eps(dtype) * max(before.size, after.size)
            apart = ~(np.abs(a - b) <= rounding)
            if apart.any():
                i = np.argmax(apart.ravel())
                x, y = sorted((a.ravel()[i], b.ravel()[i]))
                raise Unverified(
                    f"At z = {at.ravel()[i]:.6g}, where its condition changes, it jumps between "
                    f"{x:.6g} and {y:.6g}."
                )


def _eps(dtype: Any) -> float:
    finfo: Any = jnp.finfo
    return float(finfo(dtype).eps)


class _Evaluation:
    """The values and slopes of all operations between z and the outputs, for z in a piece.

    Args:
      z: the argument.
      between: the operations.
      piece: the interval of z.
      choices: the outcomes of the conditions on the piece, by key. By default those at a number
        inside the piece.
    """

    def __init__(
        self,
        z: Dependent,
        between: Sequence[Dependent],
        piece: Piece,
        choices: dict[int, Any] | None = None,
    ) -> None:
        self._z, self._between, self.size = z, between, 0.0
        self._decides = choices is None and piece.low is piece.high
        self.middle = self
        if choices is None and not self._decides:
            middle = piece.middle
            self.middle = _Evaluation(z, between, Piece(middle, middle))
            choices = self.middle.choices
        self.choices: dict[int, Any] = {} if choices is None else choices
        unit = np.float64(1)
        self._found: dict[int, Any] = {z.key: Range(piece.low, piece.high, unit, unit)}
        for value in between:
            found = self._evaluate(value)
            self._found[value.key] = found
            self._note_size(found)

    def of(self, value: Value | float) -> Any:
        """Returns the range of a value, or the outcomes of a condition."""
        if isinstance(value, Dependent):
            return self._found[value.key]
        number: Any = value.value if isinstance(value, Known) else value
        if not isinstance(number, jax.core.Tracer):
            number = np.asarray(number)
            if number.dtype == bool:
                return number
            number = number.astype(np.float64)
            if number.size and (number == number.flat[0]).all():
                number = number.flat[0]
        elif number.dtype == bool:
            raise Unverified("Its condition is traced; call it outside jax.jit.")
        zero = np.float64(0)
        return Range(number, number, zero, zero)

    def gap(self, difference: tuple[Value, Value | float]) -> Range:
        """Returns the range of a − b."""
        a, b = map(self.of, difference)
        if not isinstance(a, Range) or not isinstance(b, Range):
            raise Unverified
        self._note_size(a)
        self._note_size(b)
        return _plus(a, _minus(b))

    def at(self, switch: Piece) -> "_Evaluation":
        """Returns the limits at an end of the piece, with the choices made inside it."""
        return _Evaluation(self._z, self._between, switch, self.choices)

    def _note_size(self, found: Any) -> None:
        if isinstance(found, Range) and not (_is_traced(found.low) or _is_traced(found.high)):
            for end in (found.low, found.high):
                finite = np.abs(end)[np.isfinite(end)]
                self.size = max(self.size, float(np.max(finite, initial=0.0)))

    def _evaluate(self, value: Dependent) -> Any:
        operation = value.operation
        assert operation is not None
        name = operation.name
        if is_identity(operation):
            return self.of(unchanged(operation))
        if name in _COMPARISONS or name == "sign":
            return self._compared(value, name)
        stacked = _stacked(operation)
        if stacked is not None:
            conditions = [np.asarray(self.of(z)) for z in stacked.operands]
            return np.argmax(np.stack(np.broadcast_arrays(*conditions)), axis=0)
        operands = [self.of(operand) for operand in operation.operands]
        if name in _LOGIC:
            return _LOGIC[name](*operands)
        if name == "convert_element_type":
            (condition,) = operands
            if isinstance(condition, Range) or not jnp.issubdtype(value.dtype, jnp.floating):
                raise Unverified
            number = condition.astype(np.float64)
            return Range(number, number, np.float64(0), np.float64(0))
        if name == "is_finite":
            return np.asarray(True)
        if name == "select_n":
            return _chosen(*operands)
        if not all(isinstance(operand, Range) for operand in operands):
            raise Unverified
        if name == "integer_pow":
            return _integer_power(operands[0], operation.params["y"])
        return _FUNCTIONS[name](*operands)

    def _compared(self, value: Dependent, name: str) -> Any:
        """Decides a comparison, at a number inside the piece, or repeats an earlier decision."""
        assert value.operation is not None
        if self._decides:
            difference = _difference(value)
            assert difference is not None
            d = self.gap(difference)
            if _is_traced(d.low):
                raise Unverified
            self.choices[value.key] = (
                np.sign(d.low) if name == "sign" else _COMPARISONS[name](d.low, 0)
            )
        chosen = self.choices[value.key]
        zero = np.float64(0)
        return Range(chosen, chosen, zero, zero) if name == "sign" else chosen


def _is_traced(number: Any) -> bool:
    return isinstance(number, jax.core.Tracer)


def _abs(number: Any) -> Any:
    return array_module(number).abs(number)


def _root(number: Any) -> Any:
    return array_module(number).sqrt(number)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return array_module(condition, a, b).where(condition, a, b)


def _largest(a: Any, *others: Any) -> Any:
    for b in others:
        a = array_module(a, b).maximum(a, b)
    return a


def _smallest(a: Any, *others: Any) -> Any:
    for b in others:
        a = array_module(a, b).minimum(a, b)
    return a


def _times(a: Any, b: Any) -> Any:
    """Returns a·b, with 0·∞ = 0. Zeros and infinite ends stay concrete if a factor is traced."""
    for number, other in ((a, b), (b, a)):
        if not _is_traced(number) and _is_traced(other):
            if not np.any(number):
                return np.float64(0)
            if np.any(np.isinf(number)):
                raise Unverified
    return array_module(a, b).where((a == 0) | (b == 0), 0.0, a * b)


def _interval_product(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    """Returns the smallest and the largest product of numbers in two intervals."""
    constants = [all(end is ends[0] for end in ends) for ends in (a, b)]
    traced = any(_is_traced(end) for end in (*a, *b))
    if traced:
        for ends in (a, b):
            concrete = not any(map(_is_traced, ends))
            if concrete and any(np.any(np.isinf(end)) for end in ends):
                return np.float64(-np.inf), np.float64(np.inf)
    if all(constants):
        product = _times(a[0], b[0])
        return product, product
    products = [_times(x, y) for x in a for y in b]
    return _smallest(*products), _largest(*products)


def _plus(a: Range, b: Range) -> Range:
    return Range(*(x + y for x, y in zip(a, b, strict=True)))


def _minus(a: Range) -> Range:
    return Range(-a.high, -a.low, -a.most, -a.least)


def _product(a: Range, b: Range) -> Range:
    values = _interval_product(a[:2], b[:2])
    (p, q), (r, s) = _interval_product(a[2:], b[:2]), _interval_product(a[:2], b[2:])
    return Range(*values, p + r, q + s)


def _quotient(a: Range, b: Range) -> Range:
    if b.low is not b.high:
        if _is_traced(b.low) or _is_traced(b.high):
            raise Unverified
        if not np.all((b.low > 0) | (b.high < 0)):
            raise Unverified("It divides by a value that can be zero.")
    low = 1 / b.low if b.low is b.high else 1 / b.high
    high = 1 / b.low
    inverse_square = _smallest(low * low, high * high), _largest(low * low, high * high)
    least, most = _interval_product(inverse_square, (-b.most, -b.least))
    return _product(a, Range(low if b.low is not b.high else high, high, least, most))


def _maximum(a: Range, b: Range) -> Range:
    """Where the ranges overlap, the slope is between the slopes of both."""
    first, second = a.low >= b.high, b.low >= a.high
    least = _where(first, a.least, _where(second, b.least, _smallest(a.least, b.least)))
    most = _where(first, a.most, _where(second, b.most, _largest(a.most, b.most)))
    return Range(_largest(a.low, b.low), _largest(a.high, b.high), least, most)


def _minimum(a: Range, b: Range) -> Range:
    return _minus(_maximum(_minus(a), _minus(b)))


def _monotone(
    function: Callable[[Any], Any], slope: Callable[[Any], Any]
) -> Callable[[Range], Range]:
    """Returns the rule for an increasing function whose slope is monotone on both sides of 0."""

    def rule(a: Range) -> Range:
        if _is_traced(a.low) or _is_traced(a.high):
            raise Unverified
        ends = [slope(a.low), slope(a.high), slope(np.clip(0.0, a.low, a.high))]
        slopes = _interval_product((_smallest(*ends), _largest(*ends)), a[2:])
        return Range(function(a.low), function(a.high), *slopes)

    return rule


def _wave(function: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Callable[[Range], Range]:
    """Returns the rule for sin and cos."""

    def rule(a: Range) -> Range:
        if _is_traced(a.low) or _is_traced(a.high):
            raise Unverified
        is_point = a.low == a.high
        at = np.where(is_point, a.low, 0.0)
        values, slopes = (
            (np.where(is_point, f(at), -1.0), np.where(is_point, f(at), 1.0))
            for f in (function, slope)
        )
        return Range(*values, *_interval_product(slopes, a[2:]))

    return rule


def _power(a: Range, y: int) -> tuple[Any, Any]:
    """Returns the range of z ↦ zʸ, y ≥ 0."""
    candidates = [a.low**y, a.high**y, np.clip(0.0, a.low, a.high) ** y]
    return _smallest(*candidates), _largest(*candidates)


def _integer_power(a: Range, y: int) -> Range:
    if _is_traced(a.low) or _is_traced(a.high):
        raise Unverified
    if y < 0:
        return _quotient(_ONE, _integer_power(a, -y))
    values = _power(a, y)
    slopes = tuple(y * end for end in _power(a, max(y - 1, 0)))
    return Range(*values, *_interval_product((slopes[0], slopes[1]), a[2:]))


def _chosen(condition: Any, *cases: Any) -> Any:
    if not isinstance(condition, np.ndarray | np.generic):
        raise Unverified
    if not all(isinstance(case, Range) for case in cases):
        if len(cases) == 2 and not any(isinstance(case, Range) for case in cases):
            return np.where(condition, cases[1], cases[0])
        raise Unverified
    result = cases[0]
    for i, case in enumerate(cases[1:], 1):
        result = Range(*(_where(condition == i, x, y) for x, y in zip(case, result, strict=True)))
    return result


def _logistic(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


_ONE = Range(np.float64(1), np.float64(1), np.float64(0), np.float64(0))
_erf = np.vectorize(math.erf, otypes=[np.float64])
_FUNCTIONS: dict[str, Callable[..., Range]] = {
    "add": _plus,
    "add_any": _plus,
    "sub": lambda a, b: _plus(a, _minus(b)),
    "neg": _minus,
    "mul": _product,
    "div": _quotient,
    "max": _maximum,
    "min": _minimum,
    "abs": lambda a: _maximum(a, _minus(a)),
    "clamp": lambda low, a, high: _minimum(_maximum(a, low), high),
    "square": lambda a: _integer_power(a, 2),
    "exp": _monotone(np.exp, np.exp),
    "exp2": _monotone(np.exp2, lambda z: math.log(2) * np.exp2(z)),
    "expm1": _monotone(np.expm1, np.exp),
    "log": _monotone(np.log, lambda z: np.where(z >= 0, 1 / z, np.inf)),
    "log1p": _monotone(np.log1p, lambda z: np.where(z >= -1, 1 / (1 + z), np.inf)),
    "sqrt": _monotone(np.sqrt, lambda z: np.where(z >= 0, 0.5 / np.sqrt(z), np.inf)),
    "tanh": _monotone(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "logistic": _monotone(_logistic, lambda z: _logistic(z) * _logistic(-z)),
    "erf": _monotone(_erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-(z**2))),
    "erfc": lambda a: _plus(_ONE, _minus(_FUNCTIONS["erf"](a))),
    "atan": _monotone(np.arctan, lambda z: 1 / (1 + z**2)),
    "asinh": _monotone(np.arcsinh, lambda z: 1 / np.sqrt(1 + z**2)),
    "sin": _wave(np.sin, np.cos),
    "cos": _wave(np.cos, lambda z: -np.sin(z)),
}
_SPECIAL = {
    *("select_n", "integer_pow", "sign", "is_finite", "convert_element_type"),
    *_COMPARISONS,
    *_LOGIC,
}
