"""The measure command from outside: what it writes of a network that a comparison kept."""

import json

import numpy as np
import pytest

from benchmarks.compare import __main__ as compare
from benchmarks.measure import __main__ as measure

pytestmark = pytest.mark.slow

TINY = ("--train-size=100", "--epochs=1", "--seeds=1", "--methods=sgd,sam:rho=0.1")
QUICK = ("--examples=100", "--batch-size=100", "--probes=4", "--ascent-steps=3")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    assert compare.main([*TINY, f"--out={out}", "--save-models"]) == 0
    return out


def test_measures_the_network_that_was_trained(results, capsys):
    assert measure.main([str(results), "--method=sam:rho=0.1", *QUICK]) == 0
    printed = capsys.readouterr().out
    for what in ("loss", "‖∇L‖", "λ1", "trace", "R⁰", "R¹", "50% weight noise"):
        assert what in printed
    folder = results / "models" / "sam_rho=0.1" / "0-measured"
    found = json.loads((folder / "measured.json").read_text())
    runs = json.loads((results / "results.json").read_text())["runs"]
    (run,) = (run["measured"] for run in runs if run["method"] == "sam:rho=0.1")
    np.testing.assert_allclose(found["values"]["loss"], run["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(found["values"]["gradient_norm"], run["gradient_norm"], rtol=1e-3)
    np.testing.assert_allclose(found["eigenpairs"]["values"][0], run["lambda_max"], rtol=1e-2)
    assert found["R⁰"]["value"] <= found["R¹"]["value"]
    for plot in ("slices.png", "density.png"):
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method=asam"], "there are sam_rho=0.1/0, sgd/0"),
        (["--seed=3"], "No network of 'sgd', seed 3"),
        (["--probes=1"], "--probes 1 is out of range: at least 2"),
        (["--steps=2"], "--steps 2 must be at least --eigenvalues 5"),
        (["--rho=0"], "--rho 0.0 must be a positive number"),
        (["--rhos=1"], "unrecognized arguments: --rhos=1"),
    ],
)
def test_a_mistake_of_usage_says_what_to_write(results, arguments, expected, capsys):
    assert measure.main([str(results), *arguments]) == 2
    (paragraph,) = capsys.readouterr().err.splitlines()
    assert paragraph.startswith("error: ")
    assert expected in paragraph


def test_a_folder_without_results_is_told_what_makes_them(tmp_path, capsys):
    assert measure.main([str(tmp_path)]) == 2
    assert "benchmarks.compare --save-models --out" in capsys.readouterr().err
