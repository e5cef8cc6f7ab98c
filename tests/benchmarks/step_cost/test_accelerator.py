"""The step times on an accelerator: each method beside one gradient and Optax's SAM."""

import numpy as np
import pytest

from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.run import table
from tests.support import commands


def test_times_are_relative_to_the_same_rounds():
    """A step that takes 2 and 0.5 times as long in each round, whatever the round; what is left."""
    rounds = np.array([1.0, 5.0, 2.0, 1.0, 3.0, 4.0])
    run = {
        "network": "resnet18",
        "name": "sam",
        "gradients": 2.0,
        "temporary_bytes": 3e6,
        "trace_seconds": 1.0,
        "compile_seconds": 2.5,
        "seconds": list(2e-3 * rounds),
        "gradient_seconds": list(1e-3 * rounds),
        "optax_sam_seconds": list(4e-3 * rounds),
    }
    record = {"runs": [run], "left_out": ["resnet18, gam"], "environment": {"device": "H100"}}
    found = table(record)
    (row,) = found.rows
    assert row[:3] == ["resnet18, sam", "2", "5.00"]
    assert row[3].startswith("2.00")
    assert row[4].startswith("0.50")
    assert row[5:] == ["3", "3.5"]
    assert "Left out, because the time was used up: resnet18, gam." in found.caption


@pytest.mark.nightly
@pytest.mark.slow
def test_the_quick_run_measures_both_networks(tmp_path):
    found = commands.run(main, ("--quick", "--methods=sam"), tmp_path)
    rows = [(run["network"], run["name"], run["gradients"]) for run in found["runs"]]
    networks = ("resnet18", "transformer-0.1b")
    expected = [
        (network, name, n) for network in networks for name, n in (("adamw", 1), ("sam", 2))
    ]
    assert rows == expected
    assert all(len(run["seconds"]) == 3 for run in found["runs"])
    assert "| resnet18, sam |" in (tmp_path / "table.md").read_text()
