"""The usage errors of the commands: each names the mistake and says what to write instead."""

import pytest

from benchmarks.claims.__main__ import main as claims
from benchmarks.curvature.__main__ import main as curvature
from benchmarks.lipschitz.__main__ import main as lipschitz
from benchmarks.step_cost.__main__ import main as step_cost
from benchmarks.toy.__main__ import main as toy
from tests.support import commands


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (
            lipschitz,
            ["--methods=gap"],
            "Unknown method 'gap' in --methods. Choose plain, weight_decay",
        ),
        (
            lipschitz,
            ["--methods=projection:0"],
            "the strength must be a positive number, such as projection:",
        ),
        (
            lipschitz,
            ["--methods=projection:a"],
            "the strength must be a positive number, such as projection:",
        ),
        (lipschitz, ["--radii=0.1,x"], "--radii 0.1,x must be positive numbers"),
        (
            lipschitz,
            ["--noise=-1"],
            "--noise -1.0 is out of range: it must be 0 or a positive number",
        ),
        (lipschitz, ["--seeds=0"], "--seeds 0 is out of range: it must be at least 1"),
        (
            lipschitz,
            ["--batch-size=5000"],
            "--batch-size 5000 is more than the 1437 training examples",
        ),
        (lipschitz, ["--sweep", "--wgan"], "--sweep applies to the classifier: leave out --wgan"),
        (
            lipschitz,
            ["--wgan", "--epochs=7", "--data=mnist"],
            "--data, --epochs applies to the classifier",
        ),
        (lipschitz, ["--steps=7"], "--steps applies to the GANs: add --wgan"),
        (
            lipschitz,
            ["--sweep", "--evaluate-on=test"],
            "the test set must not influence that choice",
        ),
        (lipschitz, ["--data=nothing"], "Unknown data set 'nothing'"),
        (lipschitz, ["--rows=1"], "unrecognized arguments: --rows=1"),
        (step_cost, ["--models=vgg"], "--models cannot take 'vgg'"),
        (step_cost, ["--methods=sma"], "Unknown method 'sma'"),
        (step_cost, ["--optimizers=lion"], "--optimizers cannot take 'lion'"),
        (step_cost, ["--batch-size=0"], "--batch-size 0 is out of range"),
        (step_cost, ["--speed=fast"], "unrecognized arguments: --speed=fast"),
        (curvature, ["--probes=1"], "--probes 1 is out of range: it must be at least 2"),
        (curvature, ["--data=nothing"], "Unknown data set 'nothing'"),
        (curvature, ["--rows=1"], "unrecognized arguments: --rows=1"),
        (claims, ["--only=everything"], "Choose from below_sgd, "),
        (claims, ["--seeds=1"], "needs at least 2"),
        (claims, ["--sedes=5"], "unrecognized arguments"),
        (claims, ["--judge", "x", "--seeds=5"], "--judge does not take --seeds"),
        (claims, ["--judge", "missing"], "missing has no claims.json"),
        (toy, ["--points=1"], "--points 1 is out of range: it must be at least 2"),
    ],
)
def test_a_usage_error_says_what_to_write(command, arguments, expected, capsys):
    assert expected in commands.usage_error(command, arguments, capsys)
