"""The cost of each step, computed from the runs of the results."""

import itertools
from typing import Any, NamedTuple

from benchmarks.common.statistics.estimates import Median
from benchmarks.step_cost.timing import ratio


class StepCost(NamedTuple):
    """The cost of one step.

    Attributes:
      name: the method, or what the methods are compared with.
      gradients: the number of gradients per step, its floor.
      time: the time in gradient steps by hand.
      run: the run as the results store it.
    """

    name: str
    gradients: float
    time: Median
    run: dict[str, Any]


class NetworkCosts(NamedTuple):
    """The costs of all steps of one network and optimizer.

    Attributes:
      model: the name of the network.
      optimizer: the name of the optimizer.
      parameter_bytes: the memory of the parameters.
      steps: the costs; the gradient step by hand is first.
    """

    model: str
    optimizer: str
    parameter_bytes: int
    steps: list[StepCost]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs as the results store them."""
        return [one.run for one in self.steps]


def networks(record: dict[str, Any]) -> list[NetworkCosts]:
    """Returns the costs of each network and optimizer of the results."""
    groups = itertools.groupby(record["runs"], lambda run: (run["model"], run["optimizer"]))
    found = []
    for (model, optimizer), group in groups:
        runs = list(group)
        steps = [
            StepCost(run["name"], run["gradients"], ratio(run["seconds"], runs[0]["seconds"]), run)
            for run in runs
        ]
        found.append(NetworkCosts(model, optimizer, record["parameter_bytes"][model], steps))
    return found
