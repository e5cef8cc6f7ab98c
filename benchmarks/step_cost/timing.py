"""Times training steps in turns and compares their times."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common.statistics.estimates import Median, median

GRADIENT, OPTAX_SAM = "one gradient, by hand", "optax.contrib.sam"
# Optax's SAM with a test for NaN and infinity, and flatreg's without one.
GUARDED_OPTAX_SAM = "optax.contrib.sam in apply_if_finite"
UNGUARDED_SAM = "sam, skip_nonfinite=False"
SHORTEST = 0.02  # seconds that one timing takes at least, which short steps reach by repetition

Run = Callable[[int], None]  # takes a number of steps and waits until they are done


class Contestant(NamedTuple):
    """A training step that is ready to run.

    Attributes:
      name: the method, or what the methods are compared with.
      gradients: the number of gradients that the step evaluates, its floor.
      run: runs a number of steps and waits for them.
      analysis: what compiling took and what XLA reports; empty for a step that is not compiled.
    """

    name: str
    gradients: float
    run: Run
    analysis: dict[str, float]


def in_turns(contestants: Sequence[Contestant], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds per step of each contestant, one value per round.

    Every round starts with another contestant.
    """
    for one in contestants:
        one.run(2)  # the first steps do more than the later ones
    begin = time.perf_counter()
    contestants[0].run(1)
    steps = min(1000, math.ceil(SHORTEST / (time.perf_counter() - begin)))
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for i in range(rounds):
        first = i % len(contestants)
        for one in [*contestants[first:], *contestants[:first]]:
            begin = time.perf_counter()
            one.run(steps)
            seconds[one.name].append((time.perf_counter() - begin) / steps)
    return seconds


def ratio(seconds: Sequence[float], others: Sequence[float]) -> Median:
    """Returns the ratio of the times of two steps that ran next to each other in each round."""
    return median(np.divide(seconds, others))
