"""The curvature command: its results say how they were made, and its errors are small."""

import numpy as np
import pytest

from benchmarks.curvature.__main__ import main
from benchmarks.curvature.table import summarize
from tests.support import commands

pytestmark = pytest.mark.slow

QUICK = ("--quick", "--eigenvalues=2", "--examples=100", "--epochs=20", "--repeats=1")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("curvature")
    found = commands.run(main, [*QUICK, "--batch-size=30"], out)
    assert "| flatreg, top 2 |" in (out / "table.md").read_text()
    return found


def test_the_results_say_how_they_were_made(written):
    assert written["command"].startswith("python -m benchmarks.curvature --quick --eigenvalues=2")
    assert written["configuration"]["train_size"] == 300
    assert {"jax", "flatreg", "threads", "device"} <= set(written["environment"])
    names = [one.name for one in summarize(written)]
    assert names == [run["row"] for run in written["runs"]]
    assert names == list(written["compiled"])


def test_eigenvalues_and_trace_agree_with_the_reference(written):
    top, trace, both = summarize(written)
    reference = written["reference"]
    residual = max(written["runs"][0]["residuals"]) / reference["eigenvalues"][0]
    assert top.eigenvalue_error <= residual + 1e-6
    assert both.eigenvalue_error < 1e-4
    for one in (trace, both):
        error = np.hypot(one.standard_error, reference["standard_error"])
        assert abs(one.trace - reference["trace"]) < 5 * error


def test_the_memory_does_not_grow_with_the_number_of_batches(written):
    sizes = written["temporary_bytes_over_examples"]
    assert list(sizes) == ["30", "60", "100"]
    assert sizes["60"] <= 1.1 * sizes["30"]
