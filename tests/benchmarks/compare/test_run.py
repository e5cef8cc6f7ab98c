"""The compare command: the files that it writes, resuming, and which options change its numbers."""

import functools
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.common import measuring, results
from benchmarks.common.models import build
from benchmarks.compare import run as compare_run
from benchmarks.compare.__main__ import main
from tests.support import commands

ROOT = pathlib.Path(__file__).parents[3]
TINY = (
    *("--train-size=200", "--epochs=2", "--seeds=2", "--methods=sgd,sam:rho=0.1"),
    "--flatness=lambda_max",  # the other measures take half a minute to compile
)


def numbers_of(out):
    """Returns everything that was measured, except times, as one flat dictionary."""
    numbers = {}
    for run in results.read(out)["runs"]:
        for i, epoch in enumerate((*run["curve"], run["measured"])):
            for name, value in epoch.items():
                unequal = name in ("seconds_per_step", "lambda_max_residual")
                if not unequal and value == value:  # NaN stands for what was not measured.
                    numbers[run["method"], run["seed"], i, name] = value
    return numbers


def is_known(value):
    """Whether a quantity was measured: the results keep NaN or None for the others."""
    return value is not None and np.isfinite(value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    commands.run(main, TINY, out)
    return out


@pytest.mark.slow
def test_writes_results_table_and_figures(finished):
    found = results.read(finished)
    assert {(run["method"], run["seed"]) for run in found["runs"]} == {
        (method, seed) for method in ("sgd", "sam:rho=0.1") for seed in (0, 1)
    }
    for run in found["runs"]:
        assert not run["diverged"]
        assert len(run["curve"]) == 2
        known = {name for name, value in run["measured"].items() if is_known(value)}
        assert known >= {"test_accuracy", "noise_accuracy", "weight_norm", "lambda_max"}
    assert found["configuration"]["learning_rate"] == 0.1
    assert found["environment"].keys() >= {"python", "jax", "jaxlib", "optax", "flax", "device"}
    lines = (finished / "table.md").read_text().splitlines()
    labels = [line.split(" | ")[0] for line in lines if line.startswith("| s")]
    assert labels == ["| sgd", "| sam:rho=0.1"]
    assert any(line.startswith("| sam:rho=0.1 | 2 |") for line in lines)
    for figure in ("curves.png", "flatness.png"):
        assert commands.is_png(finished / figure)


@pytest.mark.nightly
@pytest.mark.slow
def test_an_interrupted_job_resumes_to_the_same_numbers(finished, tmp_path):
    command = [sys.executable, "-m", "benchmarks.compare", *TINY, f"--out={tmp_path}"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in job.stdout:
        if line.startswith("[1/4]"):
            job.send_signal(signal.SIGTERM)
            break
    rest = job.stdout.read()
    assert job.wait() == 130
    assert "--resume" in rest
    assert 1 <= len(results.read(tmp_path)["runs"]) < 4
    assert main([*TINY, f"--out={tmp_path}", "--resume"]) == 0
    assert numbers_of(tmp_path) == pytest.approx(numbers_of(finished), rel=1e-4)


@pytest.mark.slow
def test_resuming_adds_methods_and_seeds(finished, tmp_path):
    out = tmp_path / "grown"
    assert main([*TINY, f"--out={out}", "--seeds=1", "--methods=sam:rho=0.1"]) == 0
    assert main([*TINY, f"--out={out}", "--resume"]) == 0
    assert main([*TINY, f"--out={out}", "--resume", "--methods=sgd"]) == 0  # nothing is missing
    assert len(results.read(out)["earlier_commands"]) == 2
    assert set(results.read(out)["configuration"]["methods"]) == {"sgd", "sam:rho=0.1"}
    assert numbers_of(out) == pytest.approx(numbers_of(finished), rel=1e-4)


@pytest.mark.nightly
def test_the_option_flatness_selects_the_measures(tmp_path):
    options = [*TINY, "--seeds=1", "--model=mlp:width=8", "--warmup-epochs=0.5"]
    runs = {}
    for asked in ("no", "lambda_max", "along"):
        found = commands.run(main, [*options, f"--flatness={asked}"], tmp_path / asked)
        runs[asked] = found["runs"]
    left_out = set(measuring.Measurement._field_defaults)
    flattest = {"lambda_max", "lambda_max_residual"}
    for asked, unknown in (("no", left_out), ("lambda_max", left_out - flattest)):
        for run, along in zip(runs[asked], runs["along"], strict=True):
            known = {name: value for name, value in run["measured"].items() if is_known(value)}
            assert set(known) == set(measuring.Measurement._fields) - unknown
            residual = known.pop("lambda_max_residual", 0)
            assert residual < 1e-4
            assert known == pytest.approx({name: along["measured"][name] for name in known})
    for run in runs["along"]:
        assert np.isfinite(list(run["measured"].values())).all()
        last = run["curve"][-1]["curvature"]
        assert last["weight_norm"] == pytest.approx(run["measured"]["weight_norm"])
        assert last["lambda_max"] == pytest.approx(run["measured"]["lambda_max"], rel=0.05)
        assert last["loss"] == pytest.approx(run["measured"]["train_loss"])
    figures = {asked: {p.name for p in (tmp_path / asked).glob("*.png")} for asked in runs}
    assert figures["no"] == {"curves.png"}
    assert figures["lambda_max"] == {"curves.png", "flatness.png"}
    assert figures["along"] == {"curves.png", "flatness.png", "along.png"}


@pytest.mark.nightly
@pytest.mark.slow
def test_methods_are_compiled_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_run, "AT_ONCE", 2)
    out = tmp_path / "groups"
    found = commands.run(main, [*TINY, "--seeds=2", "--methods=sgd,sam,asam"], out)
    made = [(run["method"], run["seed"]) for run in found["runs"]]
    assert made == [("sgd", 0), ("sam", 0), ("sgd", 1), ("sam", 1), ("asam", 0), ("asam", 1)]


@pytest.mark.nightly
@pytest.mark.slow
def test_results_are_never_overwritten(finished, tmp_path, capsys, monkeypatch):
    before = results.read(finished)
    assert main([*TINY, f"--out={finished}"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*TINY, f"--out={finished}", "--resume", "--epochs=3"]) == 2
    assert "--epochs was 2 and is now 3" in capsys.readouterr().err
    np.testing.assert_equal(results.read(finished), before)
    monkeypatch.chdir(tmp_path)
    for folder in ("digits-mlp", "digits-mlp-2"):
        assert main([*TINY, "--methods=sgd", "--seeds=1", "--epochs=1"]) == 0
        assert results.exist(tmp_path / "results" / folder)


def test_a_diverged_run_is_reported(tmp_path):
    found = commands.run(main, [*TINY, "--methods=sgd", "--learning-rate=1e9"], tmp_path)
    assert all(run["diverged"] for run in found["runs"])
    assert "2 of 2 seeds diverged" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_gradient_budget_gives_sam_half_the_steps(tmp_path):
    found = commands.run(main, [*TINY, "--seeds=1", "--budget=gradients"], tmp_path)
    ends = {run["method"]: run["curve"][-1] for run in found["runs"]}
    assert ends["sgd"]["step"] == 2 * ends["sam:rho=0.1"]["step"]
    assert ends["sgd"]["gradients"] == ends["sam:rho=0.1"]["gradients"]


@pytest.mark.nightly
def test_cnn_with_adamw_noise_and_a_partial_ascent(tmp_path):
    options = ("--model=cnn", "--optimizer=adamw", "--label-noise=0.4", "--evaluate-on=validation")
    methods = "--methods=sam:rho=0.1:ascent_fraction=0.1"
    found = commands.run(main, [*TINY, *options, methods, "--seeds=1", "--epochs=1"], tmp_path)
    last = found["runs"][0]["curve"][-1]
    assert last["gradients"] / last["step"] == pytest.approx(1.1)
    assert "| sam:rho=0.1:ascent_fraction=0.1 | 1.1 |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_transformer_learns_text(tmp_path):
    """One number per character: the measurements are means over all of them."""
    model = "--model=transformer:width=16:depth=1:heads=2"
    options = ("--data=text", model, "--train-size=640", "--epochs=3", "--seeds=1")
    found = commands.run(main, [*options, "--methods=adamw", "--flatness=no"], tmp_path)
    assert found["configuration"]["optimizer"] == "adamw"
    assert found["configuration"]["warmup_epochs"] == 1
    for run in found["runs"]:
        measured = run["measured"]
        # A character is a space in 1 of 5 cases; random guesses have a loss of log(93) = 4.5.
        assert 0.2 < measured["test_accuracy"] < 0.6
        assert 1.5 < measured["test_loss"] < 3.5
        assert run["curve"][0]["train_loss"] > run["curve"][-1]["train_loss"]


SIZES = {
    "resnet18": {"widths": (4, 8), "blocks": 1},
    "vit": {"width": 8, "depth": 1, "heads": 2},
}


@pytest.mark.nightly
@pytest.mark.parametrize("model", SIZES)
def test_networks_train_in_bfloat16(model, tmp_path, monkeypatch):
    """All measurements are in float32 nevertheless."""
    small = functools.partial(build.build, **SIZES[model])
    monkeypatch.setattr(build, "build", small)
    measured_in = []

    def flatness(model, *_):  # the real one takes half a minute to compile
        measured_in.append(model.dtype)
        return dict.fromkeys(measuring.Measurement._field_defaults, 1.0)

    monkeypatch.setattr(measuring, "_flatness", flatness)
    options = (f"--model={model}", "--dtype=bfloat16", "--augment", "--methods=sam:rho=0.1")
    found = commands.run(main, [*TINY, *options, "--seeds=1", "--epochs=1"], tmp_path)
    assert found["configuration"]["dtype"] == "bfloat16"
    assert found["configuration"]["augment"]
    assert np.isfinite(list(found["runs"][0]["measured"].values())).all()
    assert measured_in == [None], "None means the dtype of the data, float32"
