"""How a command is started and interrupted as a program, and how it is written down."""

import shlex
import signal
import subprocess
import sys

import pytest

from benchmarks.common import options as compare_options
from benchmarks.compare import __main__ as compare_command
from benchmarks.compare import run as compare
from benchmarks.frontier import __main__ as frontier_command
from benchmarks.frontier import options as frontier_options
from benchmarks.frontier import run as frontier

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


@pytest.mark.parametrize(
    ("options", "run", "parse", "given"),
    [
        (compare_options, compare, compare_command.parse, {"seeds": 3, "optimizer": "adamw"}),
        (frontier_options, frontier, frontier_command._parser().parse_args, {"trials": 3}),
    ],
    ids=["compare", "frontier"],
)
def test_an_equivalent_command_gives_the_same_options(options, run, parse, given):
    made = options.complete(methods="sam", label_noise=0.4, model="cnn", data="digits", **given)
    command = run.equivalent_command(made)
    arguments = vars(parse(shlex.split(command)[3:]))
    assert options.complete(**{name: arguments[name] for name in made._fields}) == made
    assert "--data=digits" in command
    assert "--dtype" not in command  # It has its default.
