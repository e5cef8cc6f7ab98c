"""Lipschitz constants of functions that are bounded as a whole, not operation by operation.

For example, GELU is x·Φ(x), the product of two values that depend on x. Such a product cannot be
bounded in general, but GELU can. Therefore the operations of a network are compared with those of
the functions below. Both are traced. If the operations and their argument are the same, the
function is the same, regardless of its name and of the module that contains it.

    gelu, silu, mish, selu        the maximum of |φ′|, rounded up in the eighth digit
    elu, celu, leaky_relu         max(1, |α|), 1, max(1, |slope|)
    softmax                       ½: Jacobian diag(p) − ppᵀ, Gershgorin rows 2pᵢ(1 − pᵢ)
    log_softmax                   √n: ‖I − 1pᵀ‖ is convex in p, and it is √n at a vertex
    logsumexp                     1: its gradient is p
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr


class Pattern(NamedTuple):
    """A function of one array.

    Attributes:
      name: the name of the function.
      constant: its Lipschitz constant in the 2-norm.
      operations: the traced function.
    """

    name: str
    constant: float
    operations: ClosedJaxpr


FIXED: list[tuple[str, Callable[[jax.Array], jax.Array], float]] = [
    ("gelu", partial(jax.nn.gelu, approximate=True), 1.1289931),
    ("gelu", partial(jax.nn.gelu, approximate=False), 1.1289042),
    ("silu", jax.nn.silu, 1.0998394),
    ("mish", jax.nn.mish, 1.0884982),
    ("selu", jax.nn.selu, 1.7580994),
    ("softplus", jax.nn.softplus, 1.0),
    ("log_sigmoid", jax.nn.log_sigmoid, 1.0),
    ("soft_sign", jax.nn.soft_sign, 1.0),
    ("squareplus", jax.nn.squareplus, 1.0),
    ("hard_tanh", jax.nn.hard_tanh, 1.0),
    ("hard_silu", jax.nn.hard_silu, 1.5),
]
# Functions with a parameter. Its possible values are the numbers in the network's program.
FAMILIES: list[tuple[str, Callable[[jax.Array, float], jax.Array], Callable[[float], float]]] = [
    ("leaky_relu", jax.nn.leaky_relu, lambda slope: max(1.0, abs(slope))),
    ("elu", jax.nn.elu, lambda alpha: max(1.0, abs(alpha))),
    ("celu", jax.nn.celu, lambda alpha: 1.0 if alpha > 0 else math.inf),
]


def patterns(shape: tuple[int, ...], dtype: Any, numbers: Iterable[float]) -> Iterator[Pattern]:
    """Yields every function above, traced for an array of this shape and dtype.

    Args:
      shape: the shape of the argument.
      dtype: the dtype of the argument.
      numbers: the candidates for the parameters of ``FAMILIES``.
    """
    argument = jax.ShapeDtypeStruct(shape, dtype)

    def traced(name: str, constant: float, function: Callable[[jax.Array], jax.Array]) -> Pattern:
        return Pattern(name, constant, jax.make_jaxpr(function)(argument))

    for name, function, constant in FIXED:
        yield traced(name, constant, function)
    for name, of_parameter, constant_of in FAMILIES:
        for number in numbers:
            if math.isfinite(constant_of(number)):
                yield traced(name, constant_of(number), _with_parameter(of_parameter, number))
    if shape:
        yield traced("softmax", 0.5, jax.nn.softmax)
        yield traced("log_softmax", math.sqrt(shape[-1]), jax.nn.log_softmax)
        for keepdims in (False, True):
            logsumexp = partial(jax.nn.logsumexp, axis=-1, keepdims=keepdims)
            yield traced("logsumexp", 1.0, logsumexp)


def _with_parameter(
    function: Callable[[jax.Array, float], jax.Array], number: float
) -> Callable[[jax.Array], jax.Array]:
    return lambda x: function(x, number)
