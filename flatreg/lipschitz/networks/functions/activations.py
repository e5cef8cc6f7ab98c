"""Activations with a known Lipschitz constant.

For example, GELU is x·Φ(x), the product of two values that depend on x. Such a product cannot be
bounded in general, but GELU can. Therefore the operations of a network are compared with those of
the functions below. Both are traced. If the operations and their argument are the same, the
function is the same, regardless of its name and of the module that contains it.

The constants are the maximum of |φ′|, rounded up in the eighth digit. Functions that consist of
pieces, such as ``leaky_relu`` and ``elu``, are not listed here, see ``elementwise.py``.
"""

from collections.abc import Callable, Iterator
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


FUNCTIONS: list[tuple[str, Callable[[jax.Array], jax.Array], float]] = [
    ("gelu", partial(jax.nn.gelu, approximate=True), 1.1289931),
    ("gelu", partial(jax.nn.gelu, approximate=False), 1.1289042),
    ("silu", jax.nn.silu, 1.0998394),
    ("mish", jax.nn.mish, 1.0884982),
    ("soft_sign", jax.nn.soft_sign, 1.0),
    ("squareplus", jax.nn.squareplus, 1.0),
]


def patterns(shape: tuple[int, ...], dtype: Any) -> Iterator[Pattern]:
    """Yields every function above, traced for an array of this shape and dtype.

    Args:
      shape: the shape of the argument.
      dtype: the dtype of the argument.
    """
    argument = jax.ShapeDtypeStruct(shape, dtype)
    for name, function, constant in FUNCTIONS:
        yield Pattern(name, constant, jax.make_jaxpr(function)(argument))
