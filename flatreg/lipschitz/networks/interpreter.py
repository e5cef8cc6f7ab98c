"""Bounds the Lipschitz constants of all values in a traced network with respect to x."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg.lipschitz.networks.activations import Pattern, patterns
from flatreg.lipschitz.networks.folding import after_scale_or_shift, foldable_layer
from flatreg.lipschitz.networks.rules import combined, gain, matrices
from flatreg.lipschitz.networks.values import (
    Dependent,
    Known,
    Operation,
    Unbounded,
    numbered,
    propagate,
)

_LAYERS = {"conv_general_dilated", "dot_general"}


def explain(unbounded: Unbounded) -> str:
    """Returns an error message that names the operation without a bound and suggests a remedy."""
    operation, layer, after, before = unbounded
    where = [f"in {layer!r}"] if layer else []
    where.append(f"after {after!r}" if after else "right after x")
    where += [f"before {before!r}"] if before else []
    return (
        f"lipschitz_bound has no bound for `{operation}` of values that depend on x, "
        f"{', '.join(where)}. The product of two such values (attention, LayerNorm, GroupNorm, "
        "BatchNorm in training mode) cannot be bounded for all x. Bound the parts before and after "
        "the operation with lipschitz_bound(part, params, z) and multiply the bounds, or replace "
        "the layer."
    )


class Factor(NamedTuple):
    """A factor in a bound, and the name of the layer or operation that it comes from."""

    name: str
    value: Any


class Match(NamedTuple):
    """A known function of an earlier value."""

    argument: Dependent
    pattern: Pattern


class Interpreter:
    """Bounds the values of one program.

    Args:
      numbers: the numbers that the program contains, as candidates for the parameters of
        activations such as ``leaky_relu``.
    """

    def __init__(self, numbers: set[float]) -> None:
        self._numbers = sorted(numbers)
        self._factors: list[Factor] = []
        self._keys: dict[Any, int] = {}
        self._patterns: dict[Any, list[Pattern]] = {}
        self._unmatched: list[Dependent] = []  # bounded, not yet tried as an argument
        self._matches: dict[Any, Match] = {}

    def start(self, x: jax.ShapeDtypeStruct) -> Dependent:
        """Returns the input x, whose Lipschitz constant is 1."""
        return self._with_bound(Dependent(x.shape, x.dtype, "x"), [], 1.0, jnp.ones(()))

    def visit(self, operation: Operation) -> list[Dependent]:
        """Returns the outputs of an operation, each with a bound or the reason why it has none."""
        return [self._bounded(operation, output) for output in numbered(operation, self._keys)]

    def layers(self, result: Dependent) -> dict[str, jax.Array]:
        """Returns the factors in the bound of a result under distinct names."""
        layers: dict[str, jax.Array] = {}
        seen: collections.Counter[str] = collections.Counter()
        for index in sorted(result.factors):
            name, value = self._factors[index]
            seen[name] += 1
            layers[name if seen[name] == 1 else f"{name} ({seen[name]})"] = jnp.asarray(value)
        return layers

    def _bounded(self, operation: Operation, output: Dependent) -> Dependent:
        """Bounds one output by a rule for the operation or, without one, as a known function."""
        output = _located(operation, output)
        inherited = _inherited_reason(operation)
        if inherited is None:
            output = self._bounded_by_rule(operation, output)
        if output.bound is None:
            reason = inherited or _own_reason(operation)
            output = self._bounded_as_known_function(output._replace(unbounded=reason))
        return output

    def _bounded_by_rule(self, operation: Operation, output: Dependent) -> Dependent:
        """Bounds an output from the bounds of the operands, if the operation has a rule."""
        if len(operation.dependent) > 1:
            return self._with_bound(output, operation.dependent, 1.0, combined(operation))
        factor = gain(operation)
        if factor is None:
            return output
        (operand,) = operation.dependent
        bound = factor * operand.bound
        is_layer = operation.name in _LAYERS
        layer = foldable_layer(operation) if is_layer else after_scale_or_shift(operation)
        if layer is not None and operation.name in {"mul", "div"}:
            folded_bound = layer.bound(jnp.ones(output.shape[layer.axis]))
            bound = jnp.minimum(bound, folded_bound)
            factor = bound / jnp.where(operand.bound == 0, 1, operand.bound)
        name = output.layer_name if is_layer else f"{output.layer_name} {operation.name}"
        output = self._with_bound(output, [operand], factor, bound, name)
        return output._replace(head=_head(operation, output), layer=layer)

    def _bounded_as_known_function(self, output: Dependent) -> Dependent:
        """Bounds an output if it is a function of an earlier value with a known constant."""
        while self._unmatched:
            self._add_matches(self._unmatched.pop())
        if output.key not in self._matches:
            return output
        argument, (name, constant, _) = self._matches[output.key]
        bound = constant * argument.bound
        return self._with_bound(output, [argument], constant, bound, f"{output.layer_name} {name}")

    def _add_matches(self, value: Dependent) -> None:
        """Finds the keys that the outputs of the known functions of a value would have."""
        kind = value.shape, value.dtype
        if kind not in self._patterns:
            self._patterns[kind] = list(patterns(*kind, self._numbers))
        for pattern in self._patterns[kind]:
            (output,) = propagate(pattern.operations, [value], self._only_keys)
            self._matches.setdefault(output.key, Match(value, pattern))

    def _only_keys(self, operation: Operation) -> list[Dependent]:
        return list(numbered(operation, self._keys))

    def _with_bound(
        self,
        output: Dependent,
        operands: Sequence[Dependent],
        factor: Any,
        bound: Any,
        name: str = "",
    ) -> Dependent:
        """Adds a bound and its factors to an output. A factor that is the number 1 is omitted."""
        if bound is None:
            return output
        factors = frozenset[int]().union(*(operand.factors for operand in operands))
        if isinstance(factor, jax.Array) or factor != 1:
            factors |= {len(self._factors)}
            self._factors.append(Factor(name.strip(), factor))
        output = output._replace(bound=bound, factors=factors, unbounded=None)
        if jnp.issubdtype(output.dtype, jnp.floating):
            self._unmatched.append(output)
        return output


def _located(operation: Operation, output: Dependent) -> Dependent:
    """Records the layer that an output comes from and the last parameter used to compute it."""
    parameter, operand = operation.parameter, operation.dependent[0]
    layer = operation.path or parameter.rpartition("/")[0] or parameter or operand.layer_name
    return output._replace(layer_name=layer, parameter=parameter or operand.parameter)


def _inherited_reason(operation: Operation) -> Unbounded | None:
    """Returns the reason why an operand has no bound, or None if all operands have one."""
    reason = next((z.unbounded for z in operation.dependent if z.bound is None), None)
    if reason is not None and not reason.before:
        return reason._replace(before=operation.parameter)
    return reason


def _own_reason(operation: Operation) -> Unbounded:
    """Returns the reason if the operands have bounds but the operation itself has none."""
    after = operation.dependent[0].parameter
    return Unbounded(operation.name, operation.path, after, operation.parameter)


def _head(operation: Operation, output: Dependent) -> tuple[Any, jax.Array] | None:
    """Returns (B, W) if an output is Wz + c and z has the bound B."""
    operand, other = operation.dependent[0], operation.operands[-1]
    if operation.name == "dot_general" and isinstance(other, Known):
        (left, right), (batch, _) = operation.params["dimension_numbers"]
        if len(operand.shape) == 2 and not batch and tuple(left) == (1,):
            return operand.bound, matrices(other.value, right)[0]
    keeps = operation.name in {"add", "sub", "convert_element_type"}
    return operand.head if keeps and operand.shape == output.shape else None
