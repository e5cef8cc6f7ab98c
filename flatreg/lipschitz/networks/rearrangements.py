"""Values that consist of entries of one earlier value: parts, copies, permutations of its entries.

For example, ``jnp.roll`` concatenates two parts of a value. Bounding the parts one by one gives √2,
although the entries are only moved. Here each entry is followed back to the entry that it comes
from. If no entry is used more than n times, the operations together have the gain √n.

The maximum and the minimum of two values a and b are followed back to the pair (a, b) sorted entry
by entry. Sorting has gain 1, so MaxMin, which returns both, has gain 1, too. In the same way, the
maximum over an axis is followed back to the value sorted along the axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg.lipschitz.networks.values import Dependent, Operation, Value, is_concrete

Array = np.ndarray[Any, Any]

# Operations that return their only operand, apart from rounding.
IDENTITIES = {
    *("copy", "copy_p", "stop_gradient", "reduce_precision", "device_put", "name"),
    *("sharding_constraint", "layout_constraint", "optimization_barrier", "pvary"),
}
MOVES = {
    *("reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "split", "unstack", "tile"),
    *("broadcast_in_dim", "concatenate", "stack", "pad", "dynamic_slice", "dynamic_update_slice"),
    *("gather", "select_n"),
}
# The positions of the operands of these operations that must be known: positions and conditions.
_POSITIONS: dict[str, Callable[[int], Sequence[int]]] = {
    "dynamic_slice": lambda n: range(1, n),
    "dynamic_update_slice": lambda n: range(2, n),
    "gather": lambda n: range(1, n),
    "select_n": lambda n: range(1),
}
_CONSTANT = -1
MOST_ENTRIES = 2**24


class Source(NamedTuple):
    """Where the entries of a value come from.

    Attributes:
      base: an earlier value.
      entries: which entry of ``base`` each entry of the value is, or −1 for constants.
    """

    base: Dependent
    entries: Array


class Rearrangements:
    """Follows the entries of values back.

    Args:
      sort: ``sort(order, values, shape)`` returns the value of this shape that consists of the
        entries of some values sorted in some order, or None if it cannot be bounded.
    """

    def __init__(self, sort: Callable[[Any, Sequence[Dependent], tuple[int, ...]], Any]) -> None:
        self._sort = sort
        self._sources: dict[int, Source | None] = {}

    def source(self, value: Dependent) -> Source | None:
        """Returns where the entries of a value come from, at least the value itself."""
        if value.key not in self._sources:
            self._sources[value.key] = self._found(value)
        return self._sources[value.key]

    def _found(self, value: Dependent) -> Source | None:
        if math.prod(value.shape) > MOST_ENTRIES:
            return None
        itself = Source(value, np.arange(math.prod(value.shape), dtype=np.int32))
        itself = itself._replace(entries=itself.entries.reshape(value.shape))
        operation = value.operation
        if operation is None:
            return itself
        if is_identity(operation):
            return self.source(unchanged(operation))
        moved = self._moved(operation) if operation.name in MOVES else None
        return moved or self._sorted(value) or itself

    def _moved(self, operation: Operation) -> Source | None:
        """Applies an operation to the positions of the entries instead of the entries."""
        operands = operation.operands
        positions: Sequence[int] = ()
        if operation.name in _POSITIONS:
            positions = _POSITIONS[operation.name](len(operands))
        if not all(is_concrete(operands[i]) for i in positions):
            return None
        sources = [self.source(z) for z in operation.dependent]
        if len({None if source is None else source.base.key for source in sources}) != 1:
            return None
        base = sources[0].base if sources[0] is not None else None
        if base is None:
            return None
        found = iter(sources)
        arguments: list[Any] = []
        for i, operand in enumerate(operands):
            if isinstance(operand, Dependent):
                source = next(found)
                assert source is not None
                arguments.append(source.entries)
            elif i in positions:
                arguments.append(operand.value)
            else:
                arguments.append(np.full(np.shape(operand.value), _CONSTANT, np.int32))
        equation, params = operation.equation, operation.params
        if "fill_value" in params:
            params = {**params, "fill_value": _CONSTANT}
        with jax.ensure_compile_time_eval():
            results = equation.primitive.bind(*map(jnp.asarray, arguments), **params)
        result = results[operation.output_index] if equation.primitive.multiple_results else results
        return Source(base, np.asarray(result))

    def _sorted(self, value: Dependent) -> Source | None:
        """Returns a maximum or a minimum as entries of a sorted value."""
        operation = value.operation
        assert operation is not None
        pair = largest_or_smallest(operation)
        if pair is not None:
            name, operands = pair
            base = self._sort("pair", operands, (2, *value.shape))
            if base is None:
                return None
            entries = np.arange(2 * math.prod(value.shape), dtype=np.int32)
            pairs = entries.reshape(2, *value.shape)
            return Source(
                base,
                pairs[1:].reshape(value.shape) if name == "max" else pairs[:1].reshape(value.shape),
            )
        if operation.name in {"reduce_max", "reduce_min"} and len(operation.params["axes"]) == 1:
            (axis,), (operand,) = operation.params["axes"], operation.dependent
            base = self._sort(("along", int(axis)), [operand], operand.shape)
            if base is None or not operand.shape[axis]:
                return None
            entries = np.arange(math.prod(operand.shape), dtype=np.int32).reshape(operand.shape)
            end = -1 if operation.name == "reduce_max" else 0
            taken: Array = np.take(entries, [end], axis).reshape(value.shape)
            return Source(base, taken)
        return None


def is_identity(operation: Operation) -> bool:
    """Whether an operation returns an operand, apart from rounding."""
    if operation.name == "convert_element_type":
        dtypes = operation.dependent[0].dtype, operation.output.dtype
        return all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
    return operation.name in IDENTITIES and isinstance(_same_operand(operation), Dependent)


def plain(value: Dependent) -> Dependent:
    """Returns the value before operations that return their operand."""
    while value.operation is not None and is_identity(value.operation):
        value = unchanged(value.operation)
    return value


def largest_or_smallest(operation: Operation) -> tuple[str, list[Dependent]] | None:
    """Returns ("max", [a, b]) or ("min", [a, b]) if an operation is that of two values.

    Besides ``jnp.maximum(a, b)``, it recognizes ``jnp.where(a > b, a, b)``.
    """
    operands: Sequence[Value] = operation.operands
    name = operation.name
    if name == "select_n" and len(operands) == 3:
        condition, if_false, if_true = operands
        compared = condition.operation if isinstance(condition, Dependent) else None
        if compared is None or compared.name not in {"gt", "ge", "lt", "le"}:
            return None
        greater, less = (z.key for z in compared.operands)
        if compared.name in {"lt", "le"}:
            greater, less = less, greater
        keys = (if_true.key, if_false.key)
        if keys not in {(greater, less), (less, greater)}:
            return None
        name, operands = "max" if keys == (greater, less) else "min", (if_true, if_false)
    if name not in {"max", "min"}:
        return None
    pair = [z for z in operands if isinstance(z, Dependent)]
    return (name, pair) if len(pair) == 2 and pair[0].shape == pair[1].shape else None


def entry_counts(base: Dependent, sources: Sequence[Source], weights: Array | float = 1.0) -> Array:
    """Returns how often each entry of a value is used in others that come from it.

    Args:
      base: the value.
      sources: where the entries of the others come from.
      weights: how often the entries of the others are used themselves.
    """
    entries = np.concatenate([source.entries.ravel() for source in sources])
    weights = np.broadcast_to(weights, entries.shape)
    known = entries >= 0
    return np.bincount(entries[known], weights[known], minlength=math.prod(base.shape))


def unchanged(operation: Operation) -> Dependent:
    """Returns the operand that an identity returns."""
    if operation.name == "convert_element_type":
        return operation.dependent[0]
    operand = _same_operand(operation)
    assert isinstance(operand, Dependent)
    return operand


def _same_operand(operation: Operation) -> Value | None:
    """Returns the operand that an operation without effect on values returns, if there is one."""
    operands, variables = operation.operands, operation.equation.invars
    if operation.output_index >= len(operands):
        return None
    operand: Any = variables[operation.output_index].aval
    same = operand.shape == operation.output.shape
    return operands[operation.output_index] if same else None
