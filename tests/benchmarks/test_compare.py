"""The compare command from outside: its files, resuming, and what decides its numbers."""

import functools
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.common import measuring as _measure
from benchmarks.common import runs as _runs
from benchmarks.common.models import build as _models
from benchmarks.compare.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]
TINY = ("--train-size=200", "--epochs=2", "--seeds=2", "--methods=sgd,sam:rho=0.1")


def results_of(out):
    return json.loads((out / "results.json").read_text())


def numbers_of(out):
    """All that was measured but the time it took, as pytest compares it up to rounding."""
    numbers = {}
    for run in results_of(out)["runs"]:
        for i, epoch in enumerate((*run["curve"], run["measured"])):
            for name, value in epoch.items():
                if name not in ("seconds_a_step", "lambda_max_residual"):
                    numbers[run["method"], run["seed"], i, name] = value
    return numbers


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert main([*TINY, f"--out={out}"]) == 0
    return out


def test_writes_results_table_and_plots(finished):
    results = results_of(finished)
    assert {(run["method"], run["seed"]) for run in results["runs"]} == {
        (method, seed) for method in ("sgd", "sam:rho=0.1") for seed in (0, 1)
    }
    for run in results["runs"]:
        assert not run["diverged"]
        assert len(run["curve"]) == 2
        assert np.isfinite(list(run["measured"].values())).all()
    assert results["configuration"]["learning_rate"] == 0.1
    assert results["environment"].keys() >= {"python", "jax", "jaxlib", "optax", "flax", "device"}
    assert [row["label"] for row in results["summary"]] == ["sgd", "sam:rho=0.1"]
    assert "| sam:rho=0.1 | 2 |" in (finished / "table.md").read_text()
    for plot in ("curves.png", "flatness.png"):
        assert (finished / plot).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_numbers(finished, tmp_path):
    command = [sys.executable, "-m", "benchmarks.compare", *TINY, f"--out={tmp_path}"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in job.stdout:
        if line.startswith("[1/4]"):
            job.send_signal(signal.SIGTERM)
            break
    rest = job.stdout.read()
    assert job.wait() == 130
    assert "--resume" in rest
    assert 1 <= len(results_of(tmp_path)["runs"]) < 4
    assert main([*TINY, f"--out={tmp_path}", "--resume"]) == 0
    assert numbers_of(tmp_path) == pytest.approx(numbers_of(finished), rel=1e-4)


@pytest.mark.slow
def test_resuming_may_add_methods_and_seeds_and_keeps_what_is_there(finished, tmp_path):
    out = tmp_path / "grown"
    assert main([*TINY, f"--out={out}", "--seeds=1", "--methods=sam:rho=0.1"]) == 0
    assert main([*TINY, f"--out={out}", "--resume"]) == 0
    assert main([*TINY, f"--out={out}", "--resume", "--methods=sgd"]) == 0  # nothing is left to do
    assert len(results_of(out)["earlier_commands"]) == 2
    assert set(results_of(out)["configuration"]["methods"]) == {"sgd", "sam:rho=0.1"}
    assert numbers_of(out) == pytest.approx(numbers_of(finished), rel=1e-4)


def test_flatness_is_measured_as_far_as_it_is_asked_for(tmp_path):
    options = [*TINY, "--seeds=1", "--model=mlp:width=8", "--warmup-epochs=0.5"]
    runs = {}
    for asked in ("no", "lambda_max", "along"):
        assert main([*options, f"--flatness={asked}", f"--out={tmp_path / asked}"]) == 0
        runs[asked] = results_of(tmp_path / asked)["runs"]
    left_out = set(_measure.Measurement._field_defaults)
    flattest = {"lambda_max", "lambda_max_residual"}
    for asked, unknown in (("no", left_out), ("lambda_max", left_out - flattest)):
        for run, along in zip(runs[asked], runs["along"], strict=True):
            known = {name: value for name, value in run["measured"].items() if value is not None}
            assert set(known) == set(_measure.Measurement._fields) - unknown
            residual = known.pop("lambda_max_residual", 0)
            assert residual < 1e-4
            assert known == pytest.approx({name: along["measured"][name] for name in known})
    for run in runs["along"]:
        assert np.isfinite(list(run["measured"].values())).all()
        last = run["curve"][-1]["curvature"]
        assert last["weight_norm"] == pytest.approx(run["measured"]["weight_norm"])
        assert last["lambda_max"] == pytest.approx(run["measured"]["lambda_max"], rel=0.05)
        assert last["loss"] == pytest.approx(run["measured"]["train_loss"])
    plots = {asked: {p.name for p in (tmp_path / asked).glob("*.png")} for asked in runs}
    assert plots["no"] == {"curves.png"}
    assert plots["lambda_max"] == {"curves.png", "flatness.png"}
    assert plots["along"] == {"curves.png", "flatness.png", "along.png"}


def test_programs_are_compiled_in_groups_and_all_runs_made(tmp_path, monkeypatch):
    monkeypatch.setattr(_runs, "AT_ONCE", 2)
    out = tmp_path / "groups"
    assert main([*TINY, f"--out={out}", "--seeds=2", "--methods=sgd,sam,asam"]) == 0
    made = [(run["method"], run["seed"]) for run in results_of(out)["runs"]]
    assert made == [("sgd", 0), ("sam", 0), ("sgd", 1), ("sam", 1), ("asam", 0), ("asam", 1)]


def test_results_are_never_overwritten(finished, tmp_path, capsys, monkeypatch):
    before = results_of(finished)
    assert main([*TINY, f"--out={finished}"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*TINY, f"--out={finished}", "--resume", "--epochs=3"]) == 2
    assert "--epochs was 2 and is now 3" in capsys.readouterr().err
    assert results_of(finished) == before
    monkeypatch.chdir(tmp_path)
    for folder in ("digits-mlp", "digits-mlp-2"):
        assert main([*TINY, "--methods=sgd", "--seeds=1", "--epochs=1"]) == 0
        assert (tmp_path / "results" / folder / "results.json").exists()


def test_a_diverged_run_is_reported(tmp_path):
    assert main([*TINY, f"--out={tmp_path}", "--methods=sgd", "--learning-rate=1e9"]) == 0
    assert all(run["diverged"] for run in results_of(tmp_path)["runs"])
    assert "2 of 2 seeds diverged" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_equal_gradient_budget_gives_dearer_methods_fewer_steps(tmp_path):
    assert main([*TINY, f"--out={tmp_path}", "--seeds=1", "--budget=gradients"]) == 0
    ends = {run["method"]: run["curve"][-1] for run in results_of(tmp_path)["runs"]}
    assert ends["sgd"]["step"] == 2 * ends["sam:rho=0.1"]["step"]
    assert ends["sgd"]["gradients"] == ends["sam:rho=0.1"]["gradients"]


@pytest.mark.slow
def test_cnn_with_adamw_label_noise_and_a_cheap_ascent(tmp_path):
    options = ("--model=cnn", "--optimizer=adamw", "--label-noise=0.4", "--evaluate-on=validation")
    methods = "--methods=sam:rho=0.1:ascent_fraction=0.1"
    assert main([*TINY, *options, methods, f"--out={tmp_path}", "--seeds=1", "--epochs=1"]) == 0
    assert results_of(tmp_path)["summary"][0]["gradients_a_step"] == pytest.approx(1.1)


SIZES = {
    "resnet18": {"widths": (4, 8), "blocks": 1},
    "vit": {"width": 8, "depth": 1, "heads": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", SIZES)
def test_image_models_train_in_bfloat16_and_are_measured_in_float32(model, tmp_path, monkeypatch):
    small = functools.partial(_models.build, **SIZES[model])
    monkeypatch.setattr(_models, "build", small)
    measured_in = []

    def flatness(model, *_):  # whose own compilation takes half a minute
        measured_in.append(model.dtype)
        return dict.fromkeys(_measure.Measurement._field_defaults, 1.0)

    monkeypatch.setattr(_measure, "_flatness", flatness)
    options = (f"--model={model}", "--dtype=bfloat16", "--augment", "--methods=sam:rho=0.1")
    assert main([*TINY, *options, f"--out={tmp_path}", "--seeds=1", "--epochs=1"]) == 0
    results = results_of(tmp_path)
    assert results["configuration"]["dtype"] == "bfloat16"
    assert results["configuration"]["augment"]
    assert np.isfinite(list(results["runs"][0]["measured"].values())).all()
    assert measured_in == [None], "the dtype of the data, float32"
