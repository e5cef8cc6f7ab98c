"""A traced program walked through with values that are known, or that depend on the input x.

What does not depend on x is computed. What does gets a number of its own, the same for the same
operation on the same values (value numbering), so that two ways to one value are seen to be one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal


class Known(NamedTuple):
    """A value that does not depend on x, and the parameter that it comes from, if any."""

    value: Any
    key: Any
    name: str = ""


class Unbounded(NamedTuple):
    """An operation without a bound, its layer, and the parameters met before and after it."""

    operation: str
    place: str
    after: str
    before: str = ""


class Dependent(NamedTuple):
    """A value that depends on x.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      key: the same for equal values.
      bound: of the Lipschitz constant of x ↦ value, None where there is none.
      unbounded: then, why.
      place: the layer that it comes from.
      parameter: the last parameter on the way to it.
      factors: those that went into the bound, as places in a list of all.
      head: (B, W) if it is Wz + c for a z whose bound is B, W of shape (outputs, features).
      layer: if it is a layer's output, scaled and shifted: ``_folding.Layer``.
    """

    shape: tuple[int, ...]
    dtype: Any
    key: Any
    bound: Any = None
    unbounded: Unbounded | None = None
    place: str = ""
    parameter: str = ""
    factors: frozenset[int] = frozenset()
    head: tuple[Any, jax.Array] | None = None
    layer: Any = None


Value: TypeAlias = Known | Dependent
Visit: TypeAlias = Callable[[JaxprEqn, list[Value], str], Sequence[Value]]
"""``visit(equation, operands, path)``: the results of an operation on a value that depends on x."""

# Operations that only call the program in their parameters. `scan`, `while` and `cond` do more.
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}


def walk(program: Any, arguments: Sequence[Value], visit: Visit, path: str = "") -> list[Value]:
    """The program's results; ``program`` is a Jaxpr, closed or not."""
    jaxpr: Jaxpr = getattr(program, "jaxpr", program)
    constants = [known(value) for value in getattr(program, "consts", ())]
    environment: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return known(atom.val) if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inside = "/".join(filter(None, (path, str(equation.source_info.name_stack))))
        called = _called(equation)
        results: Sequence[Value]
        if called is not None:
            results = walk(called, operands, visit, inside)
        elif all(isinstance(operand, Known) for operand in operands):
            results = _compute(equation, operands)
        else:
            results = visit(equation, operands, inside)
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def known(value: Any, name: str = "") -> Known:
    """A constant. Arrays of one number are the same wherever they come from, all others differ."""
    number = None if name else uniform(value)
    return Known(value, object() if number is None else ("=", number), name)


def uniform(value: Any) -> float | None:
    """The number that fills a concrete array, if one does."""
    if isinstance(value, jax.core.Tracer) or not np.size(value):
        return None
    if not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return None
    entries = np.ravel(np.asarray(value))
    is_uniform = entries[0] == entries[-1] and bool(np.all(entries == entries[0]))
    return float(np.real(entries[0])) if is_uniform and not np.iscomplexobj(entries) else None


def numbers_in(program: Any) -> set[float]:
    """The finite numbers written in a program and in all that it calls."""
    jaxpr: Jaxpr = getattr(program, "jaxpr", program)
    found = set()
    for equation in jaxpr.eqns:
        literals = (uniform(a.val) for a in equation.invars if isinstance(a, Literal))
        found |= {number for number in literals if number is not None and np.isfinite(number)}
        called = _called(equation)
        if called is not None:
            found |= numbers_in(called)
    return found


def numbered(
    equation: JaxprEqn, operands: Sequence[Value], numbers: dict[Any, int]
) -> Iterator[Dependent]:
    """The results by their numbers alone, which ``numbers`` remembers."""
    operation = equation.primitive.name, repr(sorted(equation.params.items()))
    for i, result in enumerate(equation.outvars):
        aval: Any = result.aval
        shape, dtype = aval.shape, aval.dtype
        what = (*operation, i, shape, str(dtype), *(operand.key for operand in operands))
        yield Dependent(shape, dtype, numbers.setdefault(what, len(numbers)))


def _called(equation: JaxprEqn) -> Any:
    if equation.primitive.name not in CALLS:
        return None
    return equation.params.get("jaxpr", equation.params.get("call_jaxpr"))


def _compute(equation: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """An operation on known values, at once where they are no tracers."""
    values = [operand.value for operand in operands if isinstance(operand, Known)]
    traced = any(isinstance(value, jax.core.Tracer) for value in values)
    with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*values, **equation.params)
    names = [operand.name for operand in operands if isinstance(operand, Known) and operand.name]
    name = names[0] if names else ""
    return [
        known(result, name)
        for result in (results if equation.primitive.multiple_results else [results])
    ]
