"""The processes of a frontier end with the command that started them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[3]
PROGRAM = """
import os, time
from benchmarks.common import cli
from benchmarks.frontier.processes import Task, work_on

def make():
    def work(argument, send):
        send(os.getpid())
        time.sleep(60)
    return work

def main():
    tasks = [Task("a", 0), Task("b", 1)]
    report = lambda process: print(process, flush=True)
    return cli.exit_code(lambda: work_on(make, tasks, 2, report, report))

if __name__ == "__main__":
    cli.start(main)
"""


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupted_command_ends_its_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        processes = [int(job.stdout.readline()) for _ in range(2)]
        job.send_signal(signal.SIGINT)  # to the command alone
        _, errors = job.communicate(timeout=30)
    assert job.returncode == 130, errors
    assert errors == "Interrupted.\n"
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, processes))
