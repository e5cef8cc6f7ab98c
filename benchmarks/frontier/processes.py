"""Works on tasks in several processes, each on its own core.

A process that becomes free gets a task of the group that it has last worked on, because its
programs for that group are compiled; else a task of a group that no process has begun;
else any task.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

Work = Callable[[Any, Callable[[Any], None]], None]


class Task(NamedTuple):
    """A piece of work for one process.

    Attributes:
      group: tasks of the same group share compiled programs.
      argument: what the worker gets; it must be picklable.
    """

    group: str
    argument: Any


def work_on(
    make: Callable[[], Work],
    tasks: Sequence[Task],
    jobs: int,
    received: Callable[[Any], None],
    finished: Callable[[Task], None],
) -> None:
    """Works on all tasks.

    Args:
      make: makes a worker `work(argument, send)` in each process; it must be picklable.
      tasks: the tasks, of which the first ones begin first.
      jobs: the number of processes. With 1, this process does the work and uses all cores.
      received: is called in this process with everything that a worker sends, at once.
      finished: is called in this process with each finished task.

    Raises:
      RuntimeError: if a process ends before its work is done.
    """
    if jobs == 1:
        work = make()
        for task in tasks:
            work(task.argument, received)
            finished(task)
        return
    context = multiprocessing.get_context("spawn")
    left = list(tasks)
    working: dict[Any, tuple[Any, Task]] = {}  # by pipe: the process and its task
    begun: set[str] = set()

    def hand_out(pipe: Connection, process: Any, last: str) -> None:
        if not left:
            pipe.send(None)
            return
        task = left.pop(next_task(left, last, begun))
        begun.add(task.group)
        working[pipe] = (process, task)
        pipe.send(task)

    try:
        for number in range(min(jobs, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_process, args=(theirs, make, number), daemon=True)
            process.start()
            theirs.close()
            hand_out(ours, process, "")
        while working:
            for ready in wait(list(working)):
                process, task = working[ready]
                pipe: Any = ready
                try:
                    is_finished, value = pipe.recv()
                except EOFError as error:
                    process.join()
                    raise RuntimeError(
                        f"A process that worked on {task.group} ended with exit code "
                        f"{process.exitcode}. What it had finished is kept."
                    ) from error
                if is_finished:
                    del working[ready]
                    finished(task)
                    hand_out(pipe, process, task.group)
                else:
                    received(value)
    finally:
        for process, _ in working.values():
            process.terminate()


def next_task(left: Sequence[Task], last: str, begun: set[str]) -> int:
    """Returns the position of the next task for a process that has worked on the group `last`."""
    own = [i for i, task in enumerate(left) if task.group == last]
    new = [i for i, task in enumerate(left) if task.group not in begun]
    return (own + new + list(range(len(left))))[0]


def _process(pipe: Connection, make: Callable[[], Work], number: int) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    work = make()
    try:
        while (task := pipe.recv()) is not None:
            work(task.argument, lambda value: pipe.send((False, value)))
            pipe.send((True, None))
    except (EOFError, BrokenPipeError):  # the parent process was killed
        return
