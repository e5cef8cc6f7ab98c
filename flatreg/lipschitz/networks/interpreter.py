"""One walk through a network's program, in which every value that depends on x gets its bound."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from flatreg.lipschitz.networks.activations import Pattern, patterns
from flatreg.lipschitz.networks.folding import behind, folded, layer_of
from flatreg.lipschitz.networks.rules import combined, gain, matrices
from flatreg.lipschitz.networks.values import Dependent, Known, Unbounded, Value, numbered, walk


def explain(unbounded: Unbounded) -> str:
    """Where there is no bound, and what to do then."""
    operation, place, after, before = unbounded
    where = [f"in {place!r}"] if place else []
    where.append(f"after {after!r}" if after else "right after x")
    where += [f"before {before!r}"] if before else []
    return (
        f"lipschitz_bound knows no bound for `{operation}` of values that depend on x, "
        f"{', '.join(where)}: products of two such values (attention, LayerNorm, GroupNorm, "
        "BatchNorm in training mode) have none over all x. Bound the parts before and after it by "
        "lipschitz_bound(part, params, z) and multiply, or replace the layer."
    )


class Interpreter:
    """What is remembered on the way through one program."""

    def __init__(self, numbers: set[float]) -> None:
        self._factors: list[tuple[str, Any]] = []
        self._numbers = sorted(numbers)
        self._keys: dict[Any, int] = {}
        self._patterns: dict[Any, list[Pattern]] = {}
        self._bounded: list[Dependent] = []  # Values of which no function has been looked for.
        self._expected: dict[Any, tuple[Dependent, Pattern]] = {}

    def start(self, x: jax.ShapeDtypeStruct) -> Dependent:
        """The input."""
        return self._found(Dependent(x.shape, x.dtype, "x"), [], 1.0, jnp.ones(()))

    def visit(self, equation: JaxprEqn, operands: list[Value], path: str) -> list[Dependent]:
        """Results of an operation with their bounds, as they are by themselves or as a function."""
        names = [operand.name for operand in operands if isinstance(operand, Known)]
        name = next(filter(None, names), "")
        dependent = [operand for operand in operands if isinstance(operand, Dependent)]
        place = path or name.rpartition("/")[0] or name or dependent[0].place
        unbounded = next((z.unbounded for z in dependent if z.bound is None), None)
        if unbounded is not None and not unbounded.before:
            unbounded = unbounded._replace(before=name)
        results = []
        for result in numbered(equation, operands, self._keys):
            parameter = name or dependent[0].parameter
            result = result._replace(place=place, parameter=parameter)
            if unbounded is None:
                result = self._bounded_by_itself(equation, operands, result)
            if result.bound is None:
                why = Unbounded(equation.primitive.name, path, dependent[0].parameter, name)
                result = self._as_function(result._replace(unbounded=unbounded or why))
            results.append(result)
        return results

    def layers(self, result: Dependent) -> dict[str, jax.Array]:
        """The factors in a result's bound, under names that differ."""
        layers: dict[str, jax.Array] = {}
        seen: collections.Counter[str] = collections.Counter()
        for place in sorted(result.factors):
            name, factor = self._factors[place]
            seen[name] += 1
            layers[name if seen[name] == 1 else f"{name} ({seen[name]})"] = jnp.asarray(factor)
        return layers

    def _bounded_by_itself(
        self, equation: JaxprEqn, operands: list[Value], result: Dependent
    ) -> Dependent:
        """The result with a bound, if the operation has one."""
        dependent = [operand for operand in operands if isinstance(operand, Dependent)]
        if len(dependent) > 1:
            bound = combined(equation, operands)
            return self._found(result, dependent, 1.0, bound)
        factor = gain(equation, operands)
        bound = None if factor is None else factor * dependent[0].bound
        operation = equation.primitive.name
        is_layer = operation in {"conv_general_dilated", "dot_general"}
        layer = layer_of(equation, operands) if is_layer else behind(equation, operands)
        if layer is not None and bound is not None and operation in {"mul", "div"}:
            bound = jnp.minimum(bound, folded(layer, result.shape[layer.axis]))
            factor = bound / jnp.where(dependent[0].bound == 0, 1, dependent[0].bound)
        name = result.place if is_layer else f"{result.place} {operation}"
        found = self._found(result, dependent, factor, bound, name)
        return found._replace(head=_head(equation, operands, result), layer=layer)

    def _found(
        self,
        result: Dependent,
        operands: Sequence[Dependent],
        factor: Any,
        bound: Any,
        name: str = "",
    ) -> Dependent:
        """The result with its bound and the factors in it; one that is 1 says nothing."""
        if bound is None:
            return result
        factors = frozenset[int]().union(*(operand.factors for operand in operands))
        if isinstance(factor, jax.Array) or factor != 1:
            factors |= {len(self._factors)}
            self._factors.append((name.strip(), factor))
        result = result._replace(bound=bound, factors=factors, unbounded=None)
        if jnp.issubdtype(result.dtype, jnp.floating):
            self._bounded.append(result)
        return result

    def _as_function(self, result: Dependent) -> Dependent:
        """The result as a function of an earlier value, if it is one with a known constant."""
        while self._bounded:
            self._expect(self._bounded.pop())
        if result.key not in self._expected:
            return result
        earlier, (name, constant, _) = self._expected[result.key]
        bound = constant * earlier.bound
        return self._found(result, [earlier], constant, bound, f"{result.place} {name}")

    def _expect(self, value: Dependent) -> None:
        """Which results would be a known function of this value."""
        kind = value.shape, value.dtype
        if kind not in self._patterns:
            self._patterns[kind] = list(patterns(*kind, self._numbers))

        def visit(equation: JaxprEqn, operands: list[Value], path: str) -> list[Dependent]:
            del path
            return list(numbered(equation, operands, self._keys))

        for pattern in self._patterns[kind]:
            (result,) = walk(pattern.operations, [value], visit)
            self._expected.setdefault(result.key, (value, pattern))


def _head(
    equation: JaxprEqn, operands: Sequence[Value], result: Dependent
) -> tuple[Any, jax.Array] | None:
    """(B, W) where the result is Wz + c, B the bound of z."""
    name = equation.primitive.name
    dependent = [operand for operand in operands if isinstance(operand, Dependent)]
    first, other = dependent[0], operands[-1]
    if name == "dot_general" and isinstance(other, Known):
        (left, right), (batch, _) = equation.params["dimension_numbers"]
        if len(first.shape) == 2 and not batch and tuple(left) == (1,):
            return first.bound, matrices(other.value, right)[0]
    keeps = name in {"add", "sub", "convert_element_type"} and first.shape == result.shape
    return first.head if keeps and len(dependent) == 1 else None
