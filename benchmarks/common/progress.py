"""Shows the progress of all runs: a live bar in a terminal, one line per run elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(NamedTuple):
    """What a job calls to report its progress.

    Attributes:
      working: call `working(what, amount)` during a run: what it is doing, and how much work has
        been done since the last call.
      finished: call `finished(line)` after a run, with a line about its outcome.
    """

    working: Callable[[str, float], None]
    finished: Callable[[str], None]


def reporting(
    console: Console, runs: int, work: float
) -> contextlib.AbstractContextManager[Reporter]:
    """Returns a context manager that yields a `Reporter`.

    Args:
      console: where the progress is shown.
      runs: the number of runs.
      work: the total amount of work of all runs, in any unit.
    """
    return (_live if console.is_terminal else _plain)(console, runs, work)


@contextlib.contextmanager
def _live(console: Console, runs: int, work: float) -> Iterator[Reporter]:
    columns = (
        TextColumn("run {task.fields[run]} of {task.fields[runs]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # Average the speed over minutes, because the bar stands still while a run is measured.
    with Progress(*columns, console=console, speed_estimate_period=300) as progress:
        task = progress.add_task("starting", total=work, run=1, runs=runs)
        done = 0

        def working(what: str, amount: float) -> None:
            progress.update(task, description=what, advance=amount, run=done + 1)

        def finished(line: str) -> None:
            nonlocal done
            done += 1

        yield Reporter(working, finished)


@contextlib.contextmanager
def _plain(console: Console, runs: int, work: float) -> Iterator[Reporter]:
    begin, done_work, done_runs = time.monotonic(), 0.0, 0

    def working(what: str, amount: float) -> None:
        nonlocal done_work
        done_work += amount

    def finished(line: str) -> None:
        nonlocal done_runs
        done_runs += 1
        elapsed = time.monotonic() - begin
        left = elapsed * (work / done_work - 1)
        console.print(f"[{done_runs}/{runs}] {line}; {elapsed:.0f} s, about {left:.0f} s left")

    yield Reporter(working, finished)
