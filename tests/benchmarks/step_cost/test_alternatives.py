"""flatreg's functions are accurate where those of JAX and Optax are, and elsewhere too."""

import jax
import pytest

from benchmarks.step_cost.__main__ import main
from benchmarks.step_cost.alternatives.pairs import SMALL, pairs

pytest.importorskip("optax.microbatching", reason="Optax 0.2.7 has it")

BOTH = ("gradient, float32, 4 microbatches", "variance of the gradients of an MLP")


@pytest.mark.slow
def test_flatreg_s_functions_are_accurate():
    for pair in pairs(SMALL):
        ours, theirs = (pair.error(jax.jit(way)(*pair.args)) for way in pair.ways.values())
        limit = 0.02 if "bfloat16" in pair.name else 0.005 if "1000" in pair.name else 1e-5
        assert ours < limit, pair.name
        assert theirs < limit or pair.name not in BOTH, pair.name


@pytest.mark.slow
def test_the_command_prints_one_row_per_function(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--alternatives", "--quick"]) == 0
    printed = capsys.readouterr().out
    for pair in pairs(SMALL):
        assert printed.count(f"{pair.name}  ") == len(pair.ways), printed
