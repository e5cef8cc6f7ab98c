"""The step-cost command from outside: what it writes can be traced, and its counts are right."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks.common.methods import METHODS
from benchmarks.step_cost import __main__ as step_cost
from benchmarks.step_cost import goals as _step_cost_goals
from benchmarks.step_cost import measuring as _step_cost
from benchmarks.step_cost.measuring import GRADIENT, OPTAX_SAM

QUICK = ("--quick", "--models=mlp", "--methods=sam,sam:rho=0.1:every=2")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("step_cost")
    assert step_cost.main([*QUICK, f"--out={out}"]) == 0
    return json.loads((out / "results.json").read_text())


def test_a_result_says_how_it_was_made(written):
    assert written["command"].startswith("python -m benchmarks.step_cost --quick --models=mlp")
    assert written["configuration"]["batch_size"] == 8
    assert {"jax", "flatreg", "device"} <= set(written["environment"])
    (network,) = written["networks"]
    assert (network["model"], network["optimizer"]) == ("mlp", "sgd")
    names = [row["name"] for row in network["rows"]]
    assert names == [GRADIENT, "sgd", "sam", "sam:rho=0.1:every=2", OPTAX_SAM]


def test_every_row_has_its_floor_its_analysis_and_its_times(written):
    rows = written["networks"][0]["rows"]
    assert [row["gradients"] for row in rows] == [1, 1, 2, 1.5, 2]
    for row in rows:
        assert min(row["flops"], row["temporary_bytes"], row["compile_seconds"]) > 0
        assert len(row["seconds"]) == 3
        ratios = np.divide(row["seconds"], rows[0]["seconds"])
        assert row["time_in_gradients"]["median"] == pytest.approx(np.median(ratios))
    assert rows[2]["flops"] > 1.9 * rows[0]["flops"]


def test_each_goal_stands_beside_its_measurement(written):
    goals = written["networks"][0]["goals"]
    assert [goal["method"] for goal in goals] == ["sam"] * 3, "every is no goal of its own"
    memory = goals[-1]
    assert (memory["measured"] <= memory["limit"]) == (memory["verdict"] == "met")


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((0.98, 1.01), "met"), ((0.98, 1.1), "within noise"), ((2, 3), "missed")],
)
def test_a_verdict_needs_an_interval_clear_of_the_limit(ratios, verdict):
    seconds = np.linspace(*ratios, 20)
    rows = [
        {
            "name": name,
            "gradients": 1,
            "temporary_bytes": 1.0,
            "seconds": times,
            "time_in_gradients": _step_cost.ratio(times, np.ones(20))._asdict(),
        }
        for name, times in ((GRADIENT, np.ones(20)), ("gam_accelerated", seconds))
    ]
    assert _step_cost_goals.goals(rows, 1)[0].verdict == verdict


def test_every_method_of_the_registry_is_built_by_its_bare_name():
    built = _step_cost.methods(list(METHODS), "sgd")
    assert [method.label for method in built] == list(METHODS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--models=vgg"], "--models cannot take 'vgg'"),
        (["--methods=sma"], "Unknown method 'sma'"),
        (["--optimizers=lion"], "--optimizers cannot take 'lion'"),
        (["--batch-size=0"], "--batch-size 0 is out of range"),
        (["--speed=fast"], "unrecognized arguments: --speed=fast"),
    ],
)
def test_a_mistake_of_usage_says_what_to_write(arguments, expected, capsys):
    assert step_cost.main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_missing_peers_are_named_with_their_pip_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert step_cost.main(["--peers"]) == 2
    assert "pip install torch pytorch_optimizer" in capsys.readouterr().err
