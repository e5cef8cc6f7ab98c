"""Bounds the Lipschitz constants of all values in a traced network with respect to x."""

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import wide_dtype
from flatreg.lipschitz.networks.deferred import Deferred
from flatreg.lipschitz.networks.folding import KEEPS_LAYER, foldable_layer, scaled
from flatreg.lipschitz.networks.functions import elementwise
from flatreg.lipschitz.networks.functions.activations import Pattern, patterns
from flatreg.lipschitz.networks.functions.softmax import Softmaxes
from flatreg.lipschitz.networks.rearrangements import (
    MOVES,
    Array,
    Rearrangements,
    entry_counts,
    is_identity,
    largest_or_smallest,
    plain,
    unchanged,
)
from flatreg.lipschitz.networks.rules import ELEMENTWISE, OPERANDS, copies, gain, matrices
from flatreg.lipschitz.networks.values import (
    Dependent,
    Factor,
    Known,
    Operation,
    ScaledLayer,
    Unbounded,
    array_module,
    numbered,
    propagate,
)

_LAYERS = {"conv_general_dilated", "dot_general"}
# Operations each of whose entries changes at most as much as one entry of one of the operands.
_CHOICES = {"max", "min", "select_n", "concatenate", "stack", "dynamic_update_slice"}
_SUMS = {"add", "add_any", "sub"}
_PARTS = MOVES | {"max", "min", "reduce_max", "reduce_min"}
# Conditions, whose own jump is not why the choice between two branches cannot be bounded.
_CONDITIONS = {"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "xor", "argmax", "stack"}


class KnownFunction(NamedTuple):
    """A function of an earlier value, with a known Lipschitz constant."""

    name: str
    argument: Dependent
    constant: Any


class Bound(NamedTuple):
    """A bound, as an index of a deferred number, and its factors."""

    number: int
    factors: frozenset[Factor]


class Interpreter:
    """Bounds the values of one program."""

    def __init__(self) -> None:
        self._deferred = Deferred()
        self._positions = 0
        self._keys: dict[Any, int] = {"x": 0}
        self._patterns: dict[Any, list[Pattern]] = {}
        self._known_outputs: dict[int, dict[int, Pattern]] = {}
        self._rearrangements = Rearrangements(self._sorted)
        self._softmaxes = Softmaxes(self._rearrangements)

    def start(self, x: jax.ShapeDtypeStruct) -> Dependent:
        """Returns the input x, whose Lipschitz constant is 1."""
        return Dependent(x.shape, x.dtype, self._keys["x"], self._deferred.number(1.0))

    def visit(self, operation: Operation) -> list[Dependent]:
        """Returns the outputs of an operation, each with a bound or the reason why it has none."""
        return [self._bounded(output) for output in numbered(operation, self._keys)]

    def results(
        self, result: Dependent, *further: int
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Returns the bound of a result and further numbers, and its factors by distinct names.

        All are in the dtype of the result, and in at least float32.
        """
        assert result.bound is not None
        factors = sorted(result.factors)
        indices = [result.bound, *further, *(factor.number for factor in factors)]
        values = self._deferred.evaluate(indices, wide_dtype(result.dtype))
        layers: dict[str, jax.Array] = {}
        seen: collections.Counter[str] = collections.Counter()
        for factor, value in zip(factors, values[1 + len(further) :], strict=True):
            name = factor.name
            seen[name] += 1
            layers[name if seen[name] == 1 else f"{name} ({seen[name]})"] = value
        return values[: 1 + len(further)], layers

    def _bounded(self, output: Dependent) -> Dependent:
        """Bounds one output by a rule for the operation or, without one, as a known function."""
        operation = output.operation
        assert operation is not None
        output = _located(operation, output)
        if is_identity(operation):
            return self._like_operand(operation, output)
        several = len(operation.dependent) > 1
        inherited = _inherited_reason(operation)
        bound: Bound | None = None
        if inherited is None and several:
            bound = self._known_function(output, 1) or self._combined(operation, output)
        elif inherited is None:
            with_rule = self._by_gain(operation, output)
            if with_rule is not None:
                return with_rule
        if bound is None:
            bound = self._known_function(output, elementwise.MOST_ARGUMENTS)
        if bound is None:
            return output._replace(unbounded=self._reason(operation, output, inherited))
        return output._replace(bound=bound.number, factors=bound.factors)

    def _like_operand(self, operation: Operation, output: Dependent) -> Dependent:
        """Returns an output that is equal to an operand, apart from rounding."""
        operand = unchanged(operation)
        return operand._replace(
            shape=output.shape,
            dtype=output.dtype,
            key=output.key,
            operation=operation,
            layer_name=output.layer_name,
            parameter=output.parameter,
        )

    def _by_gain(self, operation: Operation, output: Dependent) -> Dependent | None:
        """Bounds an output by the bound of the only operand that depends on x, times a gain."""
        (operand,) = operation.dependent
        assert operand.bound is not None
        folded = self._folded(operation, output, operand)
        if folded is not None:
            return folded
        factor = gain(operation)
        if factor is None:
            return None
        if _is_one(factor):
            bound = Bound(operand.bound, operand.factors)
            output = output._replace(bound=bound.number, factors=bound.factors)
            keeps = operation.name in KEEPS_LAYER and output.shape == operand.shape
            layer = operand.layer if keeps else None
            return output._replace(head=operand.head if keeps else None, layer=layer)
        is_layer = operation.name in _LAYERS
        name = output.layer_name if is_layer else f"{output.layer_name} {operation.name}"
        new = self._factor(name, factor)
        output = output._replace(
            bound=self._deferred.formula(_product, operand.bound, new.number),
            factors=operand.factors | {new},
            head=_head(operation, operand),
        )
        foldable = foldable_layer(operation) if is_layer else None
        if foldable is None:
            return output
        return output._replace(layer=ScaledLayer(operand.bound, *foldable, new))

    def _folded(
        self, operation: Operation, output: Dependent, operand: Dependent
    ) -> Dependent | None:
        """Bounds the scaled output of a layer by the norm of the layer with the scale in it."""
        layer = operand.layer
        scale = None if layer is None else scaled(operation, layer)
        if layer is None or scale is None:
            return None
        norm = self._deferred.number(layer.norm(scale))
        xp = array_module(scale)
        before = 1.0 if layer.scale is None else xp.max(layer.scale, initial=0)
        largest = xp.max(scale, initial=0)
        # Two factors whose product is the norm: that of the layer without the largest scale, and
        # by how much this operation increases the largest scale.
        relative = self._deferred.formula(lambda norm: norm / _nonzero(largest), norm)
        of_layer = layer.factor._replace(number=relative)
        of_scale = self._factor(f"{output.layer_name} {operation.name}", largest / _nonzero(before))
        return output._replace(
            bound=self._deferred.formula(_product, layer.input_bound, norm),
            factors=operand.factors - {layer.factor} | {of_layer, of_scale},
            layer=layer._replace(factor=of_layer, scale=scale),
        )

    def _combined(self, operation: Operation, output: Dependent) -> Bound | None:
        """Bounds an operation on several values that depend on x."""
        name, values = operation.name, operation.dependent
        allowed = OPERANDS.get(name)
        if allowed is not None and any(
            isinstance(z, Dependent) and i not in allowed for i, z in enumerate(operation.operands)
        ):
            return None
        if name in _CHOICES:
            stretches = [copies(operation, z) if name in ELEMENTWISE else 1.0 for z in values]
            if any(stretch > 1 for stretch in stretches):
                return self._root_sum_squares(values, stretches)
            return self._joint(values, f"{output.layer_name} {name}")
        if name not in _SUMS:
            return None
        stretches = [math.sqrt(copies(operation, z)) for z in values]
        scaled_bounds = [
            bound if stretch == 1 else self._times(stretch, bound)
            for stretch, bound in zip(stretches, _bounds(values), strict=True)
        ]
        number = self._deferred.formula(lambda *terms: sum(terms), *scaled_bounds)
        total = Bound(number, _all(values))
        are_parts = all(z.operation is not None and z.operation.name in _PARTS for z in values)
        same_shape = stretches == [1.0] * len(values)
        parts = self._one_source(values) if are_parts and same_shape else None
        if parts is None:
            return total
        # |a + b| ≤ √2·|(a, b)|
        number = self._times(math.sqrt(len(values) * parts.constant), parts.argument.bound)
        return Bound(self._deferred.formula(_smaller, total.number, number), total.factors)

    def _joint(self, values: Sequence[Dependent], name: str) -> Bound | None:
        """Bounds several values together, as if they were concatenated."""
        parts = self._one_source(values) or self._one_argument(values)
        if parts is not None:
            return self._by_constant(parts._replace(name=name, constant=_root(parts.constant)))
        return self._root_sum_squares(values, [1.0] * len(values))

    def _one_source(self, values: Sequence[Dependent]) -> KnownFunction | None:
        """Returns the value that all values are parts of, and how often an entry is used.

        The constant of the function is the square of its Lipschitz constant, here and below.
        """
        sources = [self._rearrangements.source(z) for z in values]
        found = [source for source in sources if source is not None]
        base = found[0].base if found else None
        if base is None or base.bound is None or len(found) < len(values):
            return None
        if len({source.base.key for source in found}) > 1:
            return None
        return KnownFunction("", base, float(entry_counts(base, found).max(initial=0)))

    def _one_argument(self, values: Sequence[Dependent]) -> KnownFunction | None:
        """Returns the value of which the values are functions entry by entry.

        The values may be parts of such functions, or functions of parts.
        """
        sources = [self._rearrangements.source(z) for z in values]
        found = [source for source in sources if source is not None]
        if len(found) < len(values):
            return None
        bases = {source.base.key: source.base for source in found}
        used = {
            key: entry_counts(base, [source for source in found if source.base.key == key])
            for key, base in bases.items()
        }
        for z, between in elementwise.arguments(list(bases.values())):
            if z.bound is None:
                continue
            try:
                constant = elementwise.constant(z, between, list(bases.values()))
            except elementwise.Unverified:
                break
            most = max(counts.max(initial=0) for counts in used.values())
            return KnownFunction("", z, float(most) * constant**2)
        return self._parts_of_one(bases, used)

    def _parts_of_one(
        self, bases: dict[int, Dependent], used: dict[int, Array]
    ) -> KnownFunction | None:
        """Returns the value of whose parts the values are functions entry by entry.

        Args:
          bases: the functions of parts.
          used: how often each entry of the functions is used.
        """
        squares: Any = 0.0  # of the slopes with which each entry of the whole is used
        whole: Dependent | None = None
        for key, base in bases.items():
            slope, part = self._slope_of_part(base)
            source = self._rearrangements.source(part)
            if source is None or source.base.bound is None or not isinstance(slope, float):
                return None
            if whole is not None and source.base.key != whole.key:
                return None
            whole = source.base
            squares = squares + slope**2 * entry_counts(whole, [source], used[key])
        if whole is None:
            return None
        return KnownFunction("", whole, float(np.max(squares, initial=0)))

    def _slope_of_part(self, value: Dependent) -> tuple[Any, Dependent]:
        """Returns a constant of a value as a function of a part of another value, and the part."""
        slope: Any = 1.0
        part = value
        for argument, between in elementwise.arguments([value]):
            try:
                slope, part = elementwise.constant(argument, between, [value]), argument
            except elementwise.Unverified:
                break
            source = self._rearrangements.source(argument)
            if source is not None and source.base.key != argument.key:
                break
        return slope, part

    def _root_sum_squares(self, values: Sequence[Dependent], weights: Sequence[float]) -> Bound:
        def together(*bounds: Any) -> Any:
            unit = _nonzero(functools.reduce(_larger, bounds))  # so that the squares do not vanish
            squares = (w * (b / unit) ** 2 for w, b in zip(weights, bounds, strict=True))
            return unit * _root(sum(squares))

        return Bound(self._deferred.formula(together, *_bounds(values)), _all(values))

    def _known_function(self, output: Dependent, most_arguments: int) -> Bound | None:
        """Bounds an output as a known function of an earlier value."""
        operation = output.operation
        assert operation is not None
        recognized = self._softmaxes.recognize(output)
        if recognized is not None and recognized.argument.bound is not None:
            name, argument, _ = recognized
            return self._by_constant(
                KnownFunction(f"{output.layer_name} {name}", argument, recognized.constant)
            )
        pair = largest_or_smallest(operation)
        if pair is not None and operation.name == "select_n" and _all_bounded(pair[1]):
            return self._joint(pair[1], f"{output.layer_name} {pair[0]}")
        candidates = list(elementwise.arguments([output]))
        for argument, _ in candidates:
            pattern = self._outputs_of_patterns(argument).get(output.key)
            if pattern is not None and argument.bound is not None:
                name, constant, _ = pattern
                return self._by_constant(
                    KnownFunction(f"{output.layer_name} {name}", argument, constant)
                )
        for argument, between in candidates[:most_arguments]:
            if argument.bound is not None:
                try:
                    constant = elementwise.constant(argument, between, [output])
                except elementwise.Unverified:
                    continue
                name = f"{output.layer_name} {_function_name(operation)}"
                return self._by_constant(KnownFunction(name, argument, constant))
        return None

    def _outputs_of_patterns(self, value: Dependent) -> dict[int, Pattern]:
        """Returns the keys that the outputs of the known activations of a value have."""
        if value.key not in self._known_outputs:
            kind = value.shape, value.dtype
            if kind not in self._patterns:
                self._patterns[kind] = list(patterns(*kind))
            found: dict[int, Pattern] = {}
            for pattern in self._patterns[kind]:
                (output,) = propagate(pattern.operations, [value], self._only_keys)
                assert isinstance(output, Dependent)
                found.setdefault(plain(output).key, pattern)
            self._known_outputs[value.key] = found
        return self._known_outputs[value.key]

    def _only_keys(self, operation: Operation) -> list[Dependent]:
        return list(numbered(operation, self._keys))

    def _sorted(
        self, order: Any, values: Sequence[Dependent], shape: tuple[int, ...]
    ) -> Dependent | None:
        """Returns the value that consists of the entries of some values sorted in some order."""
        if not _all_bounded(values):
            return None
        bound = self._joint(values, "")
        if bound is None:
            return None
        name = "sorted", order, shape, frozenset(z.key for z in values)
        key = self._keys.setdefault(name, len(self._keys))
        return values[0]._replace(
            shape=shape,
            key=key,
            bound=bound.number,
            factors=bound.factors,
            head=None,
            layer=None,
            operation=None,
        )

    def _reason(
        self, operation: Operation, output: Dependent, inherited: Unbounded | None
    ) -> Unbounded:
        """Returns the reason why an output cannot be bounded."""
        by_x = isinstance(operation.operands[0], Dependent)
        is_float = jnp.issubdtype(output.dtype, jnp.floating)  # not the choice of a position
        is_choice = operation.name in {"select_n", "cond"} and by_x and is_float
        if inherited is not None and not (is_choice and inherited.operation in _CONDITIONS):
            return inherited
        parameter = operation.dependent[0].parameter
        detail = ""
        for argument, between in elementwise.arguments([output]):
            try:
                elementwise.constant(argument, between, [output])
            except elementwise.Unverified as error:
                detail = str(error)
            break
        return Unbounded(
            operation.name,
            operation.path,
            parameter,
            operation.parameter,
            len(operation.dependent),
            detail if is_choice else "",
        )

    def _by_constant(self, function: KnownFunction) -> Bound:
        """Returns the bound of a function with a known constant."""
        name, argument, constant = function
        assert argument.bound is not None
        if _is_one(constant):
            return Bound(argument.bound, argument.factors)
        factor = self._factor(name, constant)
        number = self._deferred.formula(_product, argument.bound, factor.number)
        return Bound(number, argument.factors | {factor})

    def _factor(self, name: str, value: Any) -> Factor:
        self._positions += 1
        return Factor(self._positions, name.strip(), self._deferred.number(value))

    def _times(self, constant: float, bound: int | None) -> int:
        assert bound is not None
        return self._deferred.formula(lambda value: _product(constant, value), bound)


def _located(operation: Operation, output: Dependent) -> Dependent:
    """Records the layer that an output comes from and the last parameter used to compute it."""
    parameter, operand = operation.parameter, operation.dependent[0]
    layer = operation.path or parameter.rpartition("/")[0] or parameter or operand.layer_name
    return output._replace(layer_name=layer, parameter=parameter or operand.parameter)


def _inherited_reason(operation: Operation) -> Unbounded | None:
    """Returns the reason why an operand cannot be bounded, or None if all operands are."""
    reason = next((z.unbounded for z in operation.dependent if z.bound is None), None)
    if reason is not None and not reason.before:
        return reason._replace(before=operation.parameter)
    return reason


def _head(operation: Operation, operand: Dependent) -> tuple[int, jax.Array] | None:
    """Returns (B, W) if the output is Wz and z has the bound B."""
    other = operation.operands[-1]
    if operation.name == "dot_general" and isinstance(other, Known):
        (left, right), (batch, _) = operation.params["dimension_numbers"]
        if len(operand.shape) == 2 and not batch and tuple(left) == (1,):
            assert operand.bound is not None
            return operand.bound, matrices(other.value, right)[0]
    return None


def _function_name(operation: Operation) -> str:
    return "where" if operation.name == "select_n" else operation.name


def _bounds(values: Sequence[Dependent]) -> list[int]:
    bounds = [z.bound for z in values]
    return [bound for bound in bounds if bound is not None]


def _all_bounded(values: Sequence[Dependent]) -> bool:
    return all(z.bound is not None for z in values)


def _all(values: Sequence[Dependent]) -> frozenset[Factor]:
    """Returns the factors of all values."""
    return frozenset[Factor]().union(*(z.factors for z in values))


def _is_one(factor: Any) -> bool:
    return isinstance(factor, int | float) and factor == 1


def _product(a: Any, b: Any) -> Any:
    """Returns a·b for a, b ≥ 0. It is zero only if a factor is, also if the product underflows."""
    product, xp = a * b, array_module(a, b)
    smallest = float(np.finfo(getattr(product, "dtype", np.float64)).tiny)
    return xp.where((product < smallest) & (a > 0) & (b > 0), smallest, product)


def _nonzero(number: Any) -> Any:
    return array_module(number).where(number == 0, 1, number)


def _root(number: Any) -> Any:
    return array_module(number).sqrt(number)


def _larger(a: Any, b: Any) -> Any:
    return array_module(a, b).maximum(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return array_module(a, b).minimum(a, b)
