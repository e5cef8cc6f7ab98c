"""How a command is started and interrupted as a program."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import time
from benchmarks.common import cli

def command():
    print("started", flush=True)
    time.sleep(60)

cli.start(lambda: cli.exit_code(command, "The finished runs are kept."))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_background_job_can_be_interrupted(number):
    """A shell without job control starts background jobs with SIGINT ignored."""
    shell = f'"{sys.executable}" -c \'{PROGRAM}\' & echo $!; wait $!; echo "exit code $?"'
    with subprocess.Popen(
        ["sh", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        process = int(job.stdout.readline())
        assert job.stdout.readline() == "started\n"
        subprocess.run(["kill", f"-{number.value}", str(process)], check=True)
        rest = job.communicate(timeout=20)[0]
    assert "The finished runs are kept." in rest
    assert "exit code 130" in rest
    assert "Traceback" not in rest
