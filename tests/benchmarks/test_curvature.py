"""The curvature command from outside: what it writes can be traced, and its errors are small."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks.curvature import __main__ as curvature

pytestmark = pytest.mark.slow

QUICK = ("--quick", "--eigenvalues=2", "--examples=100", "--epochs=20", "--repeats=1")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("curvature")
    assert curvature.main([*QUICK, "--batch-size=30", f"--out={out}"]) == 0
    return json.loads((out / "results.json").read_text())


def test_a_result_says_how_it_was_made(written):
    assert written["command"].startswith("python -m benchmarks.curvature --quick --eigenvalues=2")
    assert written["configuration"]["train_size"] == 300
    assert {"jax", "flatreg", "threads", "device"} <= set(written["environment"])
    rows = [row["row"] for row in written["table"]]
    assert rows == [run["row"] for run in written["runs"]]


def test_eigenvalues_and_trace_agree_with_the_reference(written):
    top, trace, both = written["table"]
    reference = written["reference"]
    residual = max(written["runs"][0]["residuals"]) / reference["eigenvalues"][0]
    assert top["eigenvalue_error"] <= residual + 1e-6
    assert both["eigenvalue_error"] < 1e-4
    for row in (trace, both):
        error = np.hypot(row["standard_error"], reference["standard_error"])
        assert abs(row["trace"] - reference["trace"]) < 5 * error


def test_memory_is_that_of_one_batch_whatever_their_number(written):
    sizes = written["temporary_bytes_over_examples"]
    assert list(sizes) == ["30", "60", "100"]
    assert sizes["60"] <= 1.1 * sizes["30"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--probes=1"], "--probes 1 is out of range: at least 2"),
        (["--data=nothing"], "Unknown data set 'nothing'"),
        (["--rows=1"], "unrecognized arguments: --rows=1"),
    ],
)
def test_a_mistake_of_usage_says_what_to_write(arguments, expected, capsys):
    assert curvature.main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_missing_peers_are_named_with_their_pip_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert curvature.main(["--peers"]) == 2
    assert "pip install torch pyhessian curvlinops-for-pytorch" in capsys.readouterr().err
