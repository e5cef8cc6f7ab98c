"""Shows the progress of all runs: a live bar in a terminal, one line per run elsewhere."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Clock = Callable[[], float]
WIDTH = 200  # of the output that does not go to a terminal


def console() -> Console:
    """Returns a console for the standard output, which is wide unless it is a terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


class Reporter(NamedTuple):
    """What a job calls to report its progress.

    Attributes:
      compiling: call `with compiling(what):` around the compilation of a program.
      working: call `working(what, amount)` during a run: what it is doing, and how much work has
        been done since the last call.
      finished: call `finished(line)` after a run, with a line about its outcome.
    """

    compiling: Callable[[str], contextlib.AbstractContextManager[None]]
    working: Callable[[str, float], None]
    finished: Callable[[str], None]


class Forecast:
    """Estimates the time that is left: that of the runs, and that of the compilations.

    Args:
      work: the total amount of work of all runs.
      programs: the number of programs that will be compiled.
      clock: returns the time in seconds.
    """

    def __init__(self, work: float, programs: int, clock: Clock = time.monotonic) -> None:
        self._work, self._programs, self._clock = work, programs, clock
        self._done = self._run_done = 0.0
        self._compilations: list[float] = []
        self._rates: list[float] = []  # seconds per unit of work, one per finished run
        self._begin = self._run_begin = clock()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Measures a compilation, whose time does not count as that of a run."""
        begin = self._clock()
        yield
        seconds = self._clock() - begin
        self._compilations.append(seconds)
        self._run_begin += seconds

    def worked(self, amount: float) -> None:
        """Adds to the work that has been done."""
        self._done += amount
        self._run_done += amount

    def finished(self) -> None:
        """Ends a run."""
        if self._run_done:
            self._rates.append((self._clock() - self._run_begin) / self._run_done)
        self._run_begin, self._run_done = self._clock(), 0.0

    def elapsed(self) -> float:
        """Returns the seconds since the beginning."""
        return self._clock() - self._begin

    def left(self) -> float:
        """Returns the seconds that are left; NaN before any work has been done.

        The speed is the median over the finished runs, because the first one also compiles what all
        runs share.
        """
        rates = self._rates
        if not rates and self._run_done:
            rates = [(self._clock() - self._run_begin) / self._run_done]
        if not rates:
            return math.nan
        seconds = statistics.median(rates) * max(0.0, self._work - self._done)
        missing = max(0, self._programs - len(self._compilations))
        compilation = statistics.fmean(self._compilations) if self._compilations else 0.0
        return seconds + missing * compilation


def reporting(
    console: Console, runs: int, work: float, programs: int = 0
) -> contextlib.AbstractContextManager[Reporter]:
    """Returns a context manager that yields a `Reporter`.

    Args:
      console: where the progress is shown.
      runs: the number of runs.
      work: the total amount of work of all runs, in any unit.
      programs: the number of compilations that are reported by `compiling`.
    """
    forecast = Forecast(work, programs)
    return (_live if console.is_terminal else _plain)(console, runs, work, forecast)


@contextlib.contextmanager
def _live(console: Console, runs: int, work: float, forecast: Forecast) -> Iterator[Reporter]:
    columns = (
        TextColumn("run {task.fields[run]} of {task.fields[runs]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA {task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        run = min(1, runs)
        task = progress.add_task("starting", total=work, run=run, runs=runs, left=_clock(math.nan))
        done = 0

        def working(what: str, amount: float) -> None:
            forecast.worked(amount)
            progress.update(
                task,
                description=what,
                advance=amount,
                run=min(done + 1, runs),
                left=_clock(forecast.left()),
            )

        @contextlib.contextmanager
        def compiling(what: str) -> Iterator[None]:
            working(f"compiling {what}", 0)
            with forecast.compiling():
                yield

        def finished(line: str) -> None:
            nonlocal done
            done += 1
            forecast.finished()

        yield Reporter(compiling, working, finished)


@contextlib.contextmanager
def _plain(console: Console, runs: int, work: float, forecast: Forecast) -> Iterator[Reporter]:
    del work
    done = 0

    @contextlib.contextmanager
    def compiling(what: str) -> Iterator[None]:
        del what
        with forecast.compiling():
            yield

    def working(what: str, amount: float) -> None:
        del what
        forecast.worked(amount)

    def finished(line: str) -> None:
        nonlocal done
        done += 1
        forecast.finished()
        elapsed, left = forecast.elapsed(), forecast.left()
        ending = "" if math.isnan(left) else f", about {left:.0f} s left"
        console.print(f"[{done}/{runs}] {line}; {elapsed:.0f} s{ending}")

    yield Reporter(compiling, working, finished)


def _clock(seconds: float) -> str:
    """The time as in `1:02:03`."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
