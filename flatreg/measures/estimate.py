"""The result type of all random estimates: a mean and its standard error."""

from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A mean over random draws and its standard error.

    Attributes:
      value: the mean, a scalar, an array or a tree.
      standard_error: the standard error of the mean, shaped like ``value``. It is zero if the value
        was computed exactly, without random draws.
    """

    value: Any
    standard_error: Any
