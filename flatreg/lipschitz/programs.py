"""Walks through traced programs (jaxprs).

:func:`walk` goes through the operations of a jaxpr in order and calls a visitor with each operation
and the values of its operands. A value is whatever the visitor wants to know about an array:
:func:`linear_maps` tracks which parameter it is, and :func:`lipschitz_bound` tracks how strongly it
depends on the input.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

T = TypeVar("T")
VisitEquation: TypeAlias = Callable[[JaxprEqn, list[T], str], Sequence[T]]
"""``visit(equation, operands, path)`` returns one value per output of the operation."""

# Operations that only call another program once, which excludes loops and conditionals.
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
# The names of the parameters that may hold the program that such an operation calls.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def walk(
    program: Jaxpr | ClosedJaxpr,
    arguments: Sequence[T],
    visit: VisitEquation[T],
    constant: Callable[[Any], T],
    path: str = "",
) -> list[T]:
    """Carries values through a program.

    Calls (``jit``, ``checkpoint``, functions with custom derivatives) are entered, so that
    ``visit`` sees the operations inside them.

    Args:
      program: the jaxpr, open or closed.
      arguments: one value per input of the program.
      visit: called for each operation, in order, with its operands and its path.
      constant: returns the value of a literal or of an array that the program captured.
      path: the name scopes around the program, such as ``"Model/Conv_0"``.

    Returns:
      One value per output of the program.
    """
    jaxpr, constants = _opened(program)
    environment: dict[Any, T] = dict(zip(jaxpr.constvars, map(constant, constants), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inside = "/".join(filter(None, (path, str(equation.source_info.name_stack))))
        called = _called_program(equation)
        if called is None:
            results = visit(equation, operands, inside)
        else:
            results = walk(called, operands, visit, constant, inside)
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def all_equations(program: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Yields every operation of a program and of the programs that it calls."""
    for equation in _opened(program)[0].eqns:
        yield equation
        called = _called_program(equation)
        if called is not None:
            yield from all_equations(called)


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Returns how many operands of a ``scan`` are constants, and how many are its carry."""
    if "ft_in" in params:  # since JAX 0.12
        constants, carry, _ = params["ft_in"].unpack()
        return len([*constants]), len([*carry])
    return params["num_consts"], params["num_carry"]


def _opened(program: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    """Returns the open jaxpr and the arrays that it captured."""
    return (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())


def _called_program(equation: JaxprEqn) -> Jaxpr | ClosedJaxpr | None:
    """Returns the program that an operation calls with its own operands, if it does only that."""
    if equation.primitive.name not in _CALLS:
        return None
    for name in _CALLED:
        program = equation.params.get(name)
        if isinstance(program, Jaxpr | ClosedJaxpr):
            same_inputs = len(_opened(program)[0].invars) == len(equation.invars)
            return program if same_inputs else None
    return None
