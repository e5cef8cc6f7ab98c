"""A record: what is kept of one tuning trial or one test run."""

import math
from typing import Any, NamedTuple

from benchmarks.frontier.tuning import Score

PLAIN = "plain"  # the method that the others are compared with
Record = dict[str, Any]


class Key(NamedTuple):
    """What identifies a record.

    Attributes:
      method: the name of the method.
      budget: the budget in units of the reference number of gradients.
      stage: `tuning` or `test`.
      number: the number of the trial, or the seed of the test run.
    """

    method: str
    budget: float
    stage: str
    number: int


def key_of(record: Record) -> Key:
    """Returns the key of a record."""
    return Key(record["method"], record["budget"], record["stage"], record["number"])


def score(record: Record) -> Score:
    """Returns the score of a tuning trial, from its accuracy and loss on the validation set.

    Raises:
      ValueError: if the record is that of a test run, which must not decide anything.
    """
    if record["stage"] != "tuning":
        raise ValueError(f"only tuning trials have a score, not {key_of(record)}")
    if record["diverged"]:
        return Score(False, 0.0, -math.inf)
    return Score(True, record["accuracy"], -record["loss"])
