"""The values that :func:`lipschitz_bound` carries through a traced program.

A value that does not depend on the input x is computed. A value that depends on x gets a key. The
same operation on the same operands gives the same key (value numbering), so repeated computations
of a value are recognized.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from flatreg.lipschitz.networks.deferred import Norm
from flatreg.lipschitz.programs import scan_counts, walk


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
      factors: how many operands of the operation depend on x.
      detail: what is wrong, in a sentence, if more is known than the name of the operation.
    """

    operation: str
    layer: str
    after: str
    before: str = ""
    factors: int = 1
    detail: str = ""


class Factor(NamedTuple):
    """A factor in a bound.

    Attributes:
      position: the position among the factors of a bound, in the order of the program.
      name: the layer or operation that the factor comes from.
      number: the index of the factor among the deferred numbers.
    """

    position: int
    name: str
    number: int


class ScaledLayer(NamedTuple):
    """A layer with a known kernel whose output was scaled per channel and shifted.

    Attributes:
      input_bound: the bound of the layer's input, as an index of a deferred number.
      axis: the channel axis of the value.
      norm: ``norm(scale)`` is the norm of the layer with its output multiplied by ``scale``.
      factor: the factor of the layer in the bound of the value.
      scale: the absolute factor per channel until now, or None before the first one.
    """

    input_bound: int
    axis: int
    norm: Callable[[jax.Array], Norm]
    factor: Factor
    scale: jax.Array | None = None


class Dependent(NamedTuple):
    """A value that depends on x.

    Attributes:
      shape: the shape of the value.
      dtype: the dtype of the value.
      key: an identifier, which is the same for values that are known to be equal, and larger than
        those of the operands.
      bound: a bound on the Lipschitz constant of x ↦ value, as an index of a deferred number, or
        None.
      unbounded: the reason why ``bound`` is None.
      layer_name: the layer that the value comes from.
      parameter: the last parameter used to compute the value.
      factors: the factors in the bound.
      head: (B, W) if the value is Wz + c, where z has the bound B. W has shape (outputs, features).
      layer: the layer whose scaled and shifted output the value is, if there is one.
      operation: the operation that computed the value. None for x.
    """

    shape: tuple[int, ...]
    dtype: Any
    key: int
    bound: int | None = None
    unbounded: Unbounded | None = None
    layer_name: str = ""
    parameter: str = ""
    factors: frozenset[Factor] = frozenset()
    head: tuple[int, jax.Array] | None = None
    layer: ScaledLayer | None = None
    operation: "Operation | None" = None


Value: TypeAlias = Known | Dependent


class Operation(NamedTuple):
    """An operation on values, at least one of which depends on x.

    Attributes:
      equation: the operation in the jaxpr.
      operands: its operands.
      path: the name scopes around it.
      output_index: which of its outputs is asked for.
    """

    equation: JaxprEqn
    operands: Sequence[Value]
    path: str = ""
    output_index: int = 0

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
        """The shape and the dtype of the output."""
        return self.equation.outvars[self.output_index].aval

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
    program: Jaxpr | ClosedJaxpr,
    arguments: Sequence[Value],
    visit: VisitOperation,
    path: str = "",
) -> list[Value]:
    """Carries values through a program and computes the operations on known values.

    Loops and conditionals are entered if the number of iterations and the condition are known.

    Args:
      program: the jaxpr.
      arguments: one value per input.
      visit: returns the outputs of an operation on a value that depends on x.
      path: the name scopes around the program.

    Returns:
      One value per output.
    """

    def visit_any(equation: JaxprEqn, operands: list[Value], path: str) -> Sequence[Value]:
        known_operands = [operand for operand in operands if isinstance(operand, Known)]
        if len(known_operands) == len(operands):
            return _computed(equation, known_operands)
        followed = FOLLOWED.get(equation.primitive.name)
        results = None if followed is None else followed(equation, operands, visit, path)
        return visit(Operation(equation, operands, path)) if results is None else results

    return walk(program, arguments, visit_any, known, path)


def _scan(
    equation: JaxprEqn, operands: list[Value], visit: VisitOperation, path: str
) -> list[Value]:
    """Carries values through the iterations of ``scan``, for example over stacked layers."""
    program = jax.make_jaxpr(functools.partial(_unrolled, equation.params))(
        *(variable.aval for variable in equation.invars)
    )
    return propagate(program, operands, visit, path)


def _unrolled(params: dict[str, Any], *operands: Any) -> list[Any]:
    """Runs the iterations of ``scan`` one after the other."""
    body, length = jaxpr_as_fun(params["jaxpr"]), params["length"]
    of_constants, of_carry = scan_counts(params)
    constants, carry = operands[:of_constants], operands[of_constants:][:of_carry]
    sequences = operands[of_constants + of_carry :]
    rows: list[Any] = [None] * length
    for i in reversed(range(length)) if params["reverse"] else range(length):
        entries = (_entry(sequence, i) for sequence in sequences)
        results = body(*constants, *carry, *entries)
        carry, rows[i] = results[:of_carry], results[of_carry:]
    if not rows:
        empty = params["jaxpr"].out_avals[of_carry:]
        return [*carry, *(jnp.zeros((0, *aval.shape), aval.dtype) for aval in empty)]
    return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def _entry(sequence: jax.Array, i: int) -> jax.Array:
    """Returns ``sequence[i]``, with one operation for all i, which is compiled once."""
    start = (i, *(0 for _ in sequence.shape[1:]))
    entry = jax.lax.dynamic_slice(sequence, start, (1, *sequence.shape[1:]))
    return jax.lax.squeeze(entry, (0,))


def _while(
    equation: JaxprEqn, operands: list[Value], visit: VisitOperation, path: str
) -> list[Value] | None:
    """Carries values through a loop as long as its condition is known."""
    params = equation.params
    of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
    condition, body = operands[:of_condition], operands[of_condition:][:of_body]
    carry = operands[of_condition + of_body :]
    while True:
        (goes_on,) = propagate(params["cond_jaxpr"], [*condition, *carry], visit, path)
        if not is_concrete(goes_on):
            return None
        if not goes_on.value:
            return carry
        carry = propagate(params["body_jaxpr"], [*body, *carry], visit, path)


def _cond(
    equation: JaxprEqn, operands: list[Value], visit: VisitOperation, path: str
) -> list[Value] | None:
    """Carries values through the branch that is taken, if that is known."""
    index, *arguments = operands
    branches = equation.params["branches"]
    if not is_concrete(index):
        return None
    taken = branches[int(np.clip(index.value, 0, len(branches) - 1))]
    return propagate(taken, arguments, visit, path)


FOLLOWED: dict[str, Callable[..., list[Value] | None]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def is_concrete(value: Value) -> TypeGuard[Known]:
    """Whether a value is known as numbers, not only as a formula of traced parameters."""
    return isinstance(value, Known) and not isinstance(value.value, jax.core.Tracer)


def array_module(*numbers: Any) -> Any:
    """Returns ``jax.numpy`` if a number is traced, else ``numpy``, which compiles nothing."""
    return jnp if any(isinstance(number, jax.core.Tracer) for number in numbers) else np


def wide(value: Any) -> Any:
    """Returns an array in at least float32, and in float64 with NumPy if it is concrete."""
    xp, dtype = array_module(value), jnp.result_type(value, jnp.float32)
    array = xp.asarray(value).astype(dtype)  # as in the network
    return array if xp is jnp else array.astype(np.float64)


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


def numbered(operation: Operation, keys: dict[Any, int]) -> Iterator[Dependent]:
    """Yields the outputs of an operation with their keys, which are remembered in ``keys``."""
    settings = operation.name, _text(sorted(operation.params.items()))
    for i, output in enumerate(operation.equation.outvars):
        aval: Any = output.aval
        shape, dtype = aval.shape, aval.dtype
        operand_keys = (operand.key for operand in operation.operands)
        expression = (*settings, i, shape, str(dtype), *operand_keys)
        key = keys.setdefault(expression, len(keys))
        yield Dependent(shape, dtype, key, operation=operation._replace(output_index=i))


def _text(setting: Any) -> str:
    """Returns a text for a setting, the same for integers of Python and of NumPy."""
    if isinstance(setting, list | tuple):
        return f"({','.join(map(_text, setting))})"
    return repr(int(setting)) if isinstance(setting, np.integer) else repr(setting)


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
