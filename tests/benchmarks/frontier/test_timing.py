"""Step times of a frontier: all methods in turn, and the fastest of several rounds counts."""

import pytest

from benchmarks.common.data import preparation
from benchmarks.common.models import build
from benchmarks.frontier.options import complete
from benchmarks.frontier.trials import bed as beds
from benchmarks.frontier.trials import cells
from benchmarks.frontier.trials.training import Trained


def test_the_fastest_of_several_rounds_counts(monkeypatch):
    """The machine is busy in the first round of one method and in the last one of the other."""
    options = complete(data="digits", train_size=100, methods="plain,sam", budgets="1")
    tuning, test = (
        preparation.load("digits", None, 100, evaluate_on) for evaluate_on in ("validation", "test")
    )
    bed = beds.make(options, build.build(options.model, test), tuning, test)
    order = []

    def build_program(contender, recipe, x, y):
        name = "plain" if contender.method is None else "sam"

        def train(values, steps, seed, x, y, examples):
            assert values["learning_rate"] == pytest.approx(0.1)  # between 0.02 and 0.5
            busy = (name == "plain") == (len(order) < 2)
            order.append(name)
            return Trained({}, False, steps * {"plain": 1.0, "sam": 2.0}[name] * (1 + busy))

        return train

    monkeypatch.setattr(cells, "build", build_program)
    assert cells.step_seconds(bed, ["plain", "sam"]) == {"plain": 1.0, "sam": 2.0}
    assert order == ["plain", "sam"] * cells.TIMED_ROUNDS
