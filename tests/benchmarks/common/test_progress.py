"""Progress: the time that is left, and what is shown in a terminal and elsewhere."""

import io
import math

import pytest
from rich.console import Console

from benchmarks.common.progress import Forecast, reporting


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_time_left_includes_compilations_to_come():
    """Two programs of 30 s each; four runs with 10 units of work, at 1 s per unit."""
    clock = Clock()
    forecast = Forecast(40, 2, clock)
    assert math.isnan(forecast.left())
    with forecast.compiling():
        clock.now += 30
    clock.now += 5
    forecast.worked(5)
    assert forecast.left() == pytest.approx(35 + 30)
    clock.now += 5
    forecast.worked(5)
    forecast.finished()
    assert forecast.left() == pytest.approx(30 + 30)
    with forecast.compiling():
        clock.now += 20
    assert forecast.left() == pytest.approx(30)
    assert forecast.elapsed() == 60


def test_a_slow_first_run_is_forgotten():
    """The first run also compiles what all runs share."""
    clock = Clock()
    forecast = Forecast(5, 0, clock)
    for seconds in (100, 2, 2):
        clock.now += seconds
        forecast.worked(1)
        forecast.finished()
    assert forecast.left() == pytest.approx(4)


@pytest.mark.parametrize("terminal", [True, False])
def test_each_run_is_counted(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with reporting(console, 2, 2.0, 1) as reporter:
        with reporter.compiling("sgd"):
            pass
        for seed in (0, 1):
            reporter.working(f"sgd, seed {seed}", 1)
            reporter.finished(f"sgd, seed {seed}: accuracy 90%")
    text = console.file.getvalue()
    assert ("run 2 of 2" if terminal else "[2/2] sgd, seed 1: accuracy 90%") in text
    assert "3 of 2" not in text


def test_an_unknown_time_is_not_printed():
    """A resumed job has finished runs before it has done any work."""
    console = Console(file=io.StringIO(), width=80)
    with reporting(console, 2, 1.0) as reporter:
        reporter.finished("sgd: accuracy 90%")
    assert console.file.getvalue() == "[1/2] sgd: accuracy 90%; 0 s\n"


def test_no_runs_are_not_counted_as_the_first():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with reporting(console, 0, 0):
        pass
    assert "run 1 of 0" not in console.file.getvalue()
