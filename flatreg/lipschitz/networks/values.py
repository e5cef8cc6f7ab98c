"""The values that :func:`lipschitz_bound` carries through a traced program.

A value that does not depend on the input x is computed. A value that depends on x gets a key. The
same operation on the same operands gives the same key (value numbering), so repeated computations
of a value are recognized.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from flatreg.lipschitz.programs import all_equations, walk


class Known(NamedTuple):
    """A value that does not depend on x.

    Attributes:
      value: the array.
      key: an identifier, which is the same for values that are known to be equal.
      name: the path of the parameter that the value was computed from, if there is one.
    """

    value: Any
    key: Any
    name: str = ""


class Unbounded(NamedTuple):
    """The reason why a value is unbounded.

    Attributes:
      operation: the operation without a bound.
      layer: the name scopes around the operation.
      after: the last parameter used before the operation.
      before: the first parameter used after the operation.
    """

    operation: str
    layer: str
    after: str
    before: str = ""


class ScaledLayer(NamedTuple):
    """A layer with a known kernel whose output was scaled per channel and shifted.

    Attributes:
      axis: the channel axis of the value.
      bound: ``bound(scale)`` bounds the Lipschitz constant of x ↦ scale ⊙ value, for one further
        factor per channel.
    """

    axis: int
    bound: Callable[[jax.Array], jax.Array]


class Dependent(NamedTuple):
    """A value that depends on x.

    Attributes:
      shape: the shape of the value.
      dtype: the dtype of the value.
      key: an identifier, which is the same for values that are known to be equal.
      bound: a bound on the Lipschitz constant of x ↦ value, or None.
      unbounded: the reason why ``bound`` is None.
      layer_name: the layer that the value comes from.
      parameter: the last parameter used to compute the value.
      factors: the factors in the bound, as indices into the interpreter's list of all factors.
      head: (B, W) if the value is Wz + c, where z has the bound B. W has shape (outputs, features).
      layer: the layer whose scaled and shifted output the value is, if there is one.
    """

    shape: tuple[int, ...]
    dtype: Any
    key: Any
    bound: Any = None
    unbounded: Unbounded | None = None
    layer_name: str = ""
    parameter: str = ""
    factors: frozenset[int] = frozenset()
    head: tuple[Any, jax.Array] | None = None
    layer: ScaledLayer | None = None


Value: TypeAlias = Known | Dependent


class Operation(NamedTuple):
    """An operation on values, at least one of which depends on x.

    Attributes:
      equation: the operation in the jaxpr.
      operands: its operands.
      path: the name scopes around it.
    """

    equation: JaxprEqn
    operands: Sequence[Value]
    path: str = ""

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the primitive."""
        return self.equation.params

    @property
    def output(self) -> Any:
        """The shape and the dtype of the first output."""
        return self.equation.outvars[0].aval

    @property
    def dependent(self) -> list[Dependent]:
        """The operands that depend on x."""
        return [operand for operand in self.operands if isinstance(operand, Dependent)]

    @property
    def position(self) -> int:
        """The position of the first operand that depends on x."""
        return next(i for i, z in enumerate(self.operands) if isinstance(z, Dependent))

    @property
    def known(self) -> Known | None:
        """The first operand that does not depend on x."""
        return next((operand for operand in self.operands if isinstance(operand, Known)), None)

    @property
    def parameter(self) -> str:
        """The name of the first operand that comes from a parameter, or an empty string."""
        names = (operand.name for operand in self.operands if isinstance(operand, Known))
        return next(filter(None, names), "")


VisitOperation: TypeAlias = Callable[[Operation], Sequence[Dependent]]


def propagate(
    program: Jaxpr | ClosedJaxpr, arguments: Sequence[Value], visit: VisitOperation
) -> list[Value]:
    """Carries values through a program and computes the operations on known values.

    Args:
      program: the jaxpr.
      arguments: one value per input.
      visit: returns the outputs of an operation on a value that depends on x.

    Returns:
      One value per output.
    """

    def visit_any(equation: JaxprEqn, operands: list[Value], path: str) -> Sequence[Value]:
        known_operands = [operand for operand in operands if isinstance(operand, Known)]
        if len(known_operands) == len(operands):
            return _computed(equation, known_operands)
        return visit(Operation(equation, operands, path))

    return walk(program, arguments, visit_any, known)


def known(value: Any, name: str = "") -> Known:
    """Returns a value that does not depend on x.

    Unnamed arrays filled with the same number share a key. All other arrays have keys of their own.
    """
    number = None if name else uniform(value)
    return Known(value, object() if number is None else ("=", number), name)


def uniform(value: Any) -> float | None:
    """Returns the number that fills a concrete array, or None."""
    if isinstance(value, jax.core.Tracer) or not np.size(value):
        return None
    if not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return None
    entries = np.ravel(np.asarray(value))
    is_uniform = entries[0] == entries[-1] and bool(np.all(entries == entries[0]))
    return float(np.real(entries[0])) if is_uniform and not np.iscomplexobj(entries) else None


def numbers_in(program: Jaxpr | ClosedJaxpr) -> set[float]:
    """Returns the finite numbers that are literals in a program or in a program that it calls."""
    literals = (
        uniform(atom.val)
        for equation in all_equations(program)
        for atom in equation.invars
        if isinstance(atom, Literal)
    )
    return {number for number in literals if number is not None and np.isfinite(number)}


def numbered(operation: Operation, keys: dict[Any, int]) -> Iterator[Dependent]:
    """Yields the outputs of an operation with their keys, which are remembered in ``keys``."""
    equation = operation.equation
    settings = operation.name, repr(sorted(operation.params.items()))
    for i, output in enumerate(equation.outvars):
        aval: Any = output.aval
        shape, dtype = aval.shape, aval.dtype
        operand_keys = (operand.key for operand in operation.operands)
        expression = (*settings, i, shape, str(dtype), *operand_keys)
        yield Dependent(shape, dtype, keys.setdefault(expression, len(keys)))


def _computed(equation: JaxprEqn, operands: Sequence[Known]) -> list[Value]:
    """Applies an operation to known values, immediately if they are concrete."""
    values = [operand.value for operand in operands]
    traced = any(isinstance(value, jax.core.Tracer) for value in values)
    with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*values, **equation.params)
    name = next((operand.name for operand in operands if operand.name), "")
    return [
        known(result, name)
        for result in (results if equation.primitive.multiple_results else [results])
    ]
