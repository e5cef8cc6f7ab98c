"""The usage errors of the commands: each names the mistake and says what to write instead."""

import importlib

import pytest

from tests.support import commands

EXPECTED = {
    "lipschitz": {
        "--methods=gap": "Unknown method 'gap' in --methods. Choose plain, weight_decay",
        "--methods=projection:0": "must be a positive number, such as projection:",
        "--methods=projection:a": "must be a positive number, such as projection:",
        "--radii=0.1,x": "--radii 0.1,x must be positive numbers",
        "--noise=-1": "--noise -1.0 is out of range: it must be 0 or a positive number",
        "--seeds=0": "--seeds 0 is out of range: it must be at least 1",
        "--batch-size=5000": "--batch-size 5000 is more than the 1437 training examples",
        "--sweep --wgan": "--sweep applies to the classifier: leave out --wgan",
        "--wgan --epochs=7 --data=mnist": "--data, --epochs applies to the classifier",
        "--steps=7": "--steps applies to the GANs: add --wgan",
        "--sweep --evaluate-on=test": "the test set must not influence that choice",
        "--data=nothing": "Unknown data set 'nothing'",
        "--rows=1": "unrecognized arguments: --rows=1",
    },
    "step_cost": {
        "--models=vgg": "--models cannot take 'vgg'",
        "--methods=sma": "Unknown method 'sma'",
        "--optimizers=lion": "--optimizers cannot take 'lion'",
        "--batch-size=0": "--batch-size 0 is out of range",
        "--speed=fast": "unrecognized arguments: --speed=fast",
    },
    "curvature": {
        "--probes=1": "--probes 1 is out of range: it must be at least 2",
        "--data=nothing": "Unknown data set 'nothing'",
        "--rows=1": "unrecognized arguments: --rows=1",
    },
    "frontier": {
        "--methods=plain,sma": "Unknown method 'sma' in --methods",
        "--methods=plain,sam,sam": "twice",
        "--methods=sam": "--methods plain,sam",
        "--budgets=1,0": "--budgets 1,0 is not valid",
        "--budgets=1,1": "--budgets 1,1 is not valid",
        "--budgets=lots": "--budgets lots is not valid",
        "--seeds=0": "--seeds 0",
        "--trials=0": "--trials 0",
        "--jobs=0": "--jobs 0",
        "--warmup=1": "--warmup 1.0",
        "--noise=1": "--label-noise 1.0",
        "--batch-size=1200": "--batch-size 1150 or less",
        "--train-size=1400": "--train-size 1150",
        "--data=text --model=mlp": "Give --model transformer with --data text",
    },
    "claims": {
        "--only=everything": "Choose from below_sgd, ",
        "--seeds=1": "needs at least 2",
        "--sedes=5": "unrecognized arguments",
        "--judge x --seeds=5": "--judge does not take --seeds",
        "--judge missing": "missing does not contain claims.json",
    },
    "toy": {"--points=1": "--points 1 is out of range: it must be at least 2"},
}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(command, arguments) for command, errors in EXPECTED.items() for arguments in errors],
)
def test_a_usage_error_says_what_to_write(command, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default folder of results, without data
    main = importlib.import_module(f"benchmarks.{command}.__main__").main
    message = commands.usage_error(main, arguments.split(), capsys)
    assert EXPECTED[command][arguments] in message
