"""Times a training step of every method, side by side.

The trials of a frontier take hours, in which the load of the machine changes. So the times of the
methods come from one short loop at the end, in which all methods train in turn.
"""

import math
from collections.abc import Sequence

from benchmarks.frontier.options import TUNING_SEED
from benchmarks.frontier.trials.bed import Bed
from benchmarks.frontier.trials.cells import Worker, ranges
from benchmarks.frontier.trials.contenders import CONTENDERS
from benchmarks.frontier.trials.training import build

STEPS = 200
ROUNDS = 5


def step_seconds(bed: Bed, methods: Sequence[str]) -> dict[str, float]:
    """Returns the seconds of a training step of each method, without compilation.

    Each method trains for 200 steps, five times in turn with the others. The fastest time counts,
    because other load on the machine can only slow a training down.

    Args:
      bed: the data and the network.
      methods: the names of the methods.
    """
    split, options = bed.test, bed.options
    examples, steps = len(split.clean_labels), min(STEPS, bed.most_steps)
    labels = split.labels(bed.num_classes, options.label_noise, TUNING_SEED)
    recipe = Worker(bed)._recipe
    programs = {name: build(CONTENDERS[name], recipe, split.x, labels) for name in methods}
    seconds = dict.fromkeys(methods, math.inf)
    for _ in range(ROUNDS):
        for name, train in programs.items():
            space = ranges(name, options.optimizer)
            middle = {key: math.sqrt(one.low * one.high) for key, one in space.items()}
            trained = train(middle, steps, TUNING_SEED, split.x, labels, examples)
            seconds[name] = min(seconds[name], trained.seconds / steps)
    return seconds
