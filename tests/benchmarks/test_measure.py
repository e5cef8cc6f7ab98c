"""The measure command: what it writes about a network that a comparison has saved."""

import json

import numpy as np
import pytest

from benchmarks.common import results as saved_results
from benchmarks.compare.__main__ import main as compare
from benchmarks.measure.__main__ import main
from tests.support import commands

pytestmark = pytest.mark.slow

TINY = ("--train-size=100", "--epochs=1", "--seeds=1", "--methods=sgd,sam:rho=0.1")
QUICK = ("--examples=100", "--batch-size=100", "--probes=4", "--ascent-steps=3")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    commands.run(compare, [*TINY, "--save-models"], out)
    return out


def test_measures_agree_with_those_of_the_comparison(results, capsys):
    assert main([str(results), "--method=sam:rho=0.1", *QUICK]) == 0
    printed = capsys.readouterr().out
    for quantity in ("loss", "‖∇L‖", "λ1", "trace", "R⁰", "R¹", "50% weight noise"):
        assert quantity in printed
    folder = results / "models" / "sam_rho=0.1" / "0-measured"
    found = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    runs = saved_results.read(results)["runs"]
    (run,) = (run["measured"] for run in runs if run["method"] == "sam:rho=0.1")
    np.testing.assert_allclose(found["values"]["loss"], run["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(found["values"]["gradient_norm"], run["gradient_norm"], rtol=1e-3)
    np.testing.assert_allclose(found["eigenpairs"]["values"][0], run["lambda_max"], rtol=1e-2)
    assert found["R⁰"]["value"] <= found["R¹"]["value"]
    for figure in ("slices.png", "density.png"):
        assert commands.is_png(folder / figure)


USAGE_ERRORS = {
    "--method=asam": "Saved networks: sam_rho=0.1/0, sgd/0",
    "--seed=3": "No network of 'sgd', seed 3",
    "--probes=1": "--probes 1 is out of range: it must be at least 2",
    "--steps=2": "--steps 2 must be at least --eigenvalues 5",
    "--rho=0": "--rho 0.0 must be a positive number",
    "--rhos=1": "unrecognized arguments: --rhos=1",
}


@pytest.mark.parametrize("argument", USAGE_ERRORS)
def test_a_usage_error_says_what_to_write(results, argument, capsys):
    assert USAGE_ERRORS[argument] in commands.usage_error(main, [str(results), argument], capsys)


def test_an_empty_folder_gets_the_command_that_fills_it(tmp_path, capsys):
    message = commands.usage_error(main, [str(tmp_path)], capsys)
    assert "benchmarks.compare --save-models --out" in message
