"""The measure command: what it writes about a network that a comparison has saved."""

import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.common import results as saved_results
from benchmarks.common.models.cnn import Cnn
from benchmarks.compare.__main__ import main as compare
from benchmarks.measure.__main__ import main
from benchmarks.measure.connectivity import connectivity
from tests.support import commands

pytestmark = pytest.mark.slow

TINY = ("--train-size=100", "--epochs=1", "--seeds=1", "--methods=sgd,sam:rho=0.1")
QUICK = ("--examples=100", "--batch-size=100", "--probes=4", "--ascent-steps=3")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    commands.run(compare, [*TINY, "--save-models"], out)
    return out


@pytest.mark.nightly
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


def test_the_report_covers_two_networks(results, capsys):
    options = ("--method=sgd", "--report", "--with=sam:rho=0.1/0", "--curve-steps=5")
    assert main([str(results), *options, *QUICK]) == 0
    printed = capsys.readouterr().out
    folder = results / "models" / "sgd" / "0-measured"
    found = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<span class="unbroken">' in page
    page = re.sub(r"</?span[^>]*>", "", page)
    for heading in ("Spectrum", "Slices", "Noise", "Worst case", "PACGen", "Stability", "Connect"):
        assert f"<h2>{heading}" in page
    for line in printed.splitlines():
        if line.startswith(("λ", "trace", "R", "Ψ", "barrier")):
            assert html.escape(line[28:]) in page
    losses = {r["method"]: r["measured"]["train_loss"] for r in saved_results.read(results)["runs"]}
    for name in ("segment", "curve"):
        ends = found[name]["losses"][0], found[name]["losses"][-1]
        np.testing.assert_allclose(ends, (losses["sgd"], losses["sam:rho=0.1"]), rtol=1e-4)
    np.testing.assert_allclose(found["stability"]["threshold"], 2 * 1.9 / 0.1, rtol=1e-6)
    sharpness = found["eigenpairs"]["values"][0]
    np.testing.assert_allclose(found["stability"]["sharpness"], sharpness, rtol=1e-2)


@pytest.mark.nightly
def test_the_loss_between_networks_uses_fresh_statistics():
    model = Cnn(channels=(4,), num_classes=3, dropout=0.0)
    x = jax.random.normal(jax.random.key(0), (20, 4, 4, 1))
    y = jnp.arange(20) % 3
    first, second = (model.init(jax.random.key(i), x, train=False) for i in (1, 2))
    found = connectivity(model, 20, 3, first, second["params"], (x, y), jax.random.key(3))
    for losses in (found.segment.losses, found.curve.losses):
        for loss, variables in ((losses[0], first), (losses[-1], second)):
            logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
            expected = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # The error is over the examples, and exactly zero where the barrier is at one of the ends.
    for barrier in (found.segment, found.curve):
        assert (barrier.standard_error > 0) == (barrier.value > 0)


USAGE_ERRORS = {
    "--with=sgd": "--with sgd is the network that is measured",
    "--with=sgd/x": "--with sgd/x does not end in a seed",
    "--with=sam:rho=0.1/7": "No network of 'sam:rho=0.1', seed 7",
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
