"""Lipschitz constants of functions that are more than the sum of their operations.

x·Φ(x) is a product of two values that depend on x, for which there is no bound; but GELU has one.
So a network's operations are compared with those of the functions below, traced likewise: the same
operations on the same value are the same function, by whatever name and inside whatever module.

    gelu, silu, mish, selu        the maximum of |φ′|, rounded up in the eighth digit
    elu, celu, leaky_relu         max(1, |α|), 1, max(1, |slope|)
    softmax                       ½: Jacobian diag(p) − ppᵀ, Gershgorin rows 2pᵢ(1 − pᵢ)
    log_softmax                   √n: I − 1pᵀ is convex in p, and at a vertex its norm is √n
    logsumexp                     1: its gradient is p
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr


class Pattern(NamedTuple):
    """A function of one array by its operations, and its Lipschitz constant in the 2-norm."""

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
# Functions with a parameter, which is looked for among the numbers in the network.
FAMILIES: list[tuple[str, Callable[..., jax.Array], Callable[[float], float]]] = [
    ("leaky_relu", jax.nn.leaky_relu, lambda slope: max(1.0, abs(slope))),
    ("elu", jax.nn.elu, lambda alpha: max(1.0, abs(alpha))),
    ("celu", jax.nn.celu, lambda alpha: 1.0 if alpha > 0 else math.inf),
]


def patterns(shape: tuple[int, ...], dtype: Any, numbers: Iterable[float]) -> Iterator[Pattern]:
    """Every function, traced for an array of this shape."""
    argument = jax.ShapeDtypeStruct(shape, dtype)

    def traced(name: str, constant: float, function: Callable[..., jax.Array]) -> Pattern:
        return Pattern(name, constant, jax.make_jaxpr(function)(argument))

    for name, function, constant in FIXED:
        yield traced(name, constant, function)
    for name, function, of_parameter in FAMILIES:
        for number in numbers:
            if math.isfinite(of_parameter(number)):
                yield traced(name, of_parameter(number), lambda x, f=function, a=number: f(x, a))
    if shape:
        yield traced("softmax", 0.5, jax.nn.softmax)
        yield traced("log_softmax", math.sqrt(shape[-1]), jax.nn.log_softmax)
        for keepdims in (False, True):
            logsumexp = partial(jax.nn.logsumexp, axis=-1, keepdims=keepdims)
            yield traced("logsumexp", 1.0, logsumexp)
