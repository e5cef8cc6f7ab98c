"""Promotion of dtypes and ranks inside functions that compute only with flatreg's own arrays.

``jax_numpy_dtype_promotion="strict"`` and ``jax_numpy_rank_promotion="raise"`` find mistakes in the
code of the user. Functions that call the user's code therefore follow these settings. Functions
that do not, or that only interpret the program of the user's code, may ignore them.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def with_standard_promotion(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function ignore the settings for strict promotion."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped
