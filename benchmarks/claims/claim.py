"""What a claim and a check consist of; `registry.py` lists them."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.claims.experiments import Experiments
from benchmarks.claims.verdict import Check, Effect


class Claim(NamedTuple):
    """A statement that experiments can support or contradict.

    Attributes:
      statement: the claim in one sentence.
      source: the paper that makes it, or `flatreg` for a claim of this library.
      effects: makes the runs and returns the effects that the claim predicts.
      caveat: what the runs leave open; empty for nothing.
    """

    statement: str
    source: str
    effects: Callable[[Experiments], list[Effect]]
    caveat: str = ""


class Checked(NamedTuple):
    """A statement that holds by construction.

    Attributes:
      statement: the statement in one sentence.
      source: the paper that makes it.
      checks: makes the runs and returns what must be true.
    """

    statement: str
    source: str
    checks: Callable[[Experiments], list[Check]]
