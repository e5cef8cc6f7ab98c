"""Softmax, log_softmax and logsumexp, recognized by what they compute.

These functions divide by a sum, subtract a maximum that cancels, and take logarithms. Operation by
operation, they cannot be bounded. They are recognized from their last operation backwards: an
exponential that is divided by its own sum is a softmax, whatever was subtracted from all logits of
a group, along whichever axes, inside or outside ``vmap``.

    softmax       ½: its Jacobian is diag(p) − ppᵀ, with Gershgorin rows 2pᵢ(1 − pᵢ) ≤ ½
    log_softmax   √n: ‖I − 1pᵀ‖ is convex in p, and it is √n at a vertex
    logsumexp     1: its gradient is p

All three are applied to disjoint groups of entries, so the constant of one group is the constant of
all. The constants are the smallest ones, except that of softmax for groups of one entry.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flatreg.lipschitz.networks.rearrangements import Array, Rearrangements, plain
from flatreg.lipschitz.networks.values import Dependent, Operation


class Recognized(NamedTuple):
    """A function of groups of entries of an earlier value.

    Attributes:
      name: "softmax", "log_softmax" or "logsumexp".
      argument: the earlier value.
      axes: the axes of ``argument`` along which the entries of a group lie.
    """

    name: str
    argument: Dependent
    axes: tuple[int, ...]

    @property
    def constant(self) -> float:
        """The Lipschitz constant."""
        size = math.prod(self.argument.shape[axis] for axis in self.axes)
        return {"softmax": 0.5, "log_softmax": math.sqrt(size), "logsumexp": 1.0}[self.name]


class Softmaxes:
    """Recognizes the functions above.

    Args:
      rearrangements: follows entries back to where they come from.
    """

    def __init__(self, rearrangements: Rearrangements) -> None:
        self._source = rearrangements.source
        self._recognized: dict[int, Recognized | None] = {}

    def recognize(self, value: Dependent) -> Recognized | None:
        """Returns the function that a value is, if it is one of these."""
        value = plain(value)
        if value.key not in self._recognized:
            self._recognized[value.key] = self._found(value)
        return self._recognized[value.key]

    def _found(self, value: Dependent) -> Recognized | None:
        operation = value.operation
        if operation is None:
            return None
        rules = {
            "div": self._quotient,
            "mul": self._quotient,
            "sub": self._difference,
            "exp": self._exponential,
            "log": self._logarithm,
            "add": self._sum,
        }
        rule = rules.get(operation.name)
        return None if rule is None else rule(operation)

    def _quotient(self, operation: Operation) -> Recognized | None:
        """exp(z) / Σ exp(z), also as exp(z) · (1 / Σ exp(z))."""
        for exponential, total in _pairs(operation):
            logits = _argument("exp", exponential)
            if logits is None:
                continue
            spread = self._spread(total, exponential.shape)
            if spread is None:
                continue
            base, groups = spread
            if operation.name == "mul":
                inverted = _argument("reciprocal", base)
                source = None if inverted is None else self._source(plain(inverted))
                if source is None:
                    continue
                base, groups = plain(source.base), source.entries.ravel()[groups]
            summed = _argument("reduce_sum", base)
            if summed is None or plain(summed).key != plain(exponential).key:
                continue
            axes = _axes(base)
            if np.array_equal(groups, _groups(exponential.shape, axes)):
                return Recognized("softmax", self._unshifted(logits, axes), axes)
        return None

    def _difference(self, operation: Operation) -> Recognized | None:
        """z − logsumexp(z)."""
        for logits, shift in _pairs(operation):
            spread = self._spread(shift, logits.shape)
            found = None if spread is None else self.recognize(spread[0])
            if spread is None or found is None or found.name != "logsumexp":
                continue
            same = plain(found.argument).key == plain(logits).key
            if same and np.array_equal(spread[1], _groups(logits.shape, found.axes)):
                argument = self._unshifted(logits, found.axes)
                return Recognized("log_softmax", argument, found.axes)
        return None

    def _exponential(self, operation: Operation) -> Recognized | None:
        """exp(log_softmax(z))."""
        found = self.recognize(operation.dependent[0])
        if found is not None and found.name == "log_softmax":
            return found._replace(name="softmax")
        return None

    def _logarithm(self, operation: Operation) -> Recognized | None:
        """log Σ exp(z), also as log |Σ exp(z)| and with kept axes; and log(softmax(z))."""
        operand = operation.dependent[0]
        found = self.recognize(operand)
        if found is not None and found.name == "softmax":
            return found._replace(name="log_softmax")
        total = _argument("abs", operand)
        source = self._source(plain(operand) if total is None else plain(total))
        if source is None:
            return None
        total = plain(source.base)
        inner = _argument("abs", total)
        total = total if inner is None else plain(inner)
        summed = _argument("reduce_sum", total)
        logits = None if summed is None else _argument("exp", summed)
        in_order = np.array_equal(source.entries.ravel(), np.arange(math.prod(total.shape)))
        if logits is None or not in_order:
            return None
        return Recognized("logsumexp", logits, _axes(total))

    def _sum(self, operation: Operation) -> Recognized | None:
        """log Σ exp(z − m) + m."""
        for logarithm, shift in _pairs(operation):
            source, added = self._source(plain(logarithm)), self._source(plain(shift))
            found = None if source is None else self.recognize(source.base)
            if source is None or added is None or found is None or found.name != "logsumexp":
                continue
            inner = plain(found.argument).operation
            if inner is None or inner.name != "sub" or len(inner.dependent) != 2:
                continue
            logits, subtracted = inner.dependent
            spread = self._spread(subtracted, logits.shape)
            if spread is None or plain(spread[0]).key != plain(added.base).key:
                continue
            groups = _groups(logits.shape, found.axes)
            # The shift of each group, and whether it is the same for all entries of the group.
            shifts = np.full(groups.max() + 1, -1)
            shifts[groups.ravel()] = spread[1].ravel()
            in_order = np.array_equal(source.entries.ravel(), np.arange(source.entries.size))
            constant = np.array_equal(shifts[groups], spread[1])
            if in_order and constant and np.array_equal(shifts, added.entries.ravel()):
                return Recognized("logsumexp", logits, found.axes)
        return None

    def _unshifted(self, logits: Dependent, axes: tuple[int, ...]) -> Dependent:
        """Returns z if the logits are z − m, where m is the same for all entries of a group."""
        while True:
            operation = plain(logits).operation
            if operation is None or operation.name != "sub" or len(operation.dependent) != 2:
                return logits
            earlier, shift = operation.dependent
            spread = self._spread(shift, earlier.shape)
            if spread is None or earlier.shape != logits.shape:
                return logits
            groups = _groups(earlier.shape, axes)
            of_group = np.full(groups.max() + 1, -1)
            of_group[groups.ravel()] = spread[1].ravel()
            if not np.array_equal(of_group[groups], spread[1]):
                return logits
            logits = earlier

    def _spread(self, value: Dependent, shape: tuple[int, ...]) -> tuple[Dependent, Array] | None:
        """Returns the base of a value, and which of its entries each entry of the value is."""
        source = self._source(plain(value))
        if source is None or not math.prod(shape) or len(value.shape) not in (0, len(shape)):
            return None
        return plain(source.base), np.broadcast_to(source.entries, shape)


def _pairs(operation: Operation) -> Iterator[tuple[Dependent, Dependent]]:
    """Yields the two operands that depend on x, in both orders where the order does not matter."""
    if len(operation.dependent) != 2:
        return
    first, second = operation.dependent
    yield first, second
    if operation.name in {"add", "mul"}:
        yield second, first


def _argument(name: str, value: Dependent) -> Dependent | None:
    """Returns z if a value is the result of the named operation on z."""
    operation = plain(value).operation
    if operation is None or len(operation.dependent) != 1:
        return None
    (operand,) = operation.dependent
    if name == "reciprocal":
        known: Any = operation.known
        is_division = operation.name == "div" and operation.position == 1
        if is_division and known is not None and known.key == ("=", 1.0):
            return operand
        is_power = operation.name == "integer_pow" and operation.params["y"] == -1
        return operand if is_power else None
    return operand if operation.name == name else None


def _axes(total: Dependent) -> tuple[int, ...]:
    operation = plain(total).operation
    assert operation is not None
    return tuple(int(axis) for axis in operation.params["axes"])


def _groups(shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Returns the number of the group of each entry of an array that is reduced along axes."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape)
