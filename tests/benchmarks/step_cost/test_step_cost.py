"""The step-cost command: its results say how they were made, and its counts are right."""

import numpy as np
import pytest

from benchmarks.common.methods import METHODS
from benchmarks.step_cost.__main__ import main
from benchmarks.step_cost.contestants import methods
from benchmarks.step_cost.costs import networks
from benchmarks.step_cost.goals import goals
from benchmarks.step_cost.timing import GRADIENT, OPTAX_SAM
from tests.support import commands

QUICK = ("--quick", "--models=mlp", "--methods=sam,sam:rho=0.1:every=2")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("step_cost")
    found = commands.run(main, QUICK, out)
    assert "| optax.contrib.sam |" in (out / "table.md").read_text()
    assert commands.is_png(out / "step_cost.png")
    return found


def test_the_results_say_how_they_were_made(written):
    assert written["command"].startswith("python -m benchmarks.step_cost --quick --models=mlp")
    assert written["configuration"]["batch_size"] == 8
    assert {"jax", "flatreg", "device"} <= set(written["environment"])
    (network,) = networks(written)
    assert (network.model, network.optimizer) == ("mlp", "sgd")
    names = [one.name for one in network.steps]
    assert names == [GRADIENT, "sgd", "sam", "sam:rho=0.1:every=2", OPTAX_SAM]


def test_each_step_has_its_floor_its_analysis_and_its_times(written):
    steps = networks(written)[0].steps
    assert [one.gradients for one in steps] == [1, 1, 2, 1.5, 2]
    for one in steps:
        run = one.run
        assert min(run["flops"], run["temporary_bytes"], run["compile_seconds"]) > 0
        assert len(run["seconds"]) == 3
        ratios = np.divide(run["seconds"], steps[0].run["seconds"])
        assert one.time.median == pytest.approx(np.median(ratios))
    assert steps[2].run["flops"] > 1.9 * steps[0].run["flops"]


def test_each_goal_has_a_measurement_and_every_has_no_goals(written):
    found = goals(written["runs"], written["parameter_bytes"]["mlp"])
    assert [goal.method for goal in found] == ["sam"] * 3
    memory = found[-1]
    assert (memory.measured <= memory.limit) == (memory.verdict == "met")


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((0.98, 1.01), "met"), ((0.98, 1.1), "within noise"), ((2, 3), "missed")],
)
def test_a_verdict_needs_an_interval_clear_of_the_limit(ratios, verdict):
    seconds = np.linspace(*ratios, 20)
    runs = [
        {"name": name, "gradients": 1, "temporary_bytes": 1.0, "seconds": times}
        for name, times in ((GRADIENT, np.ones(20)), ("gam_accelerated", seconds))
    ]
    assert goals(runs, 1)[0].verdict == verdict


@pytest.mark.parametrize(("method", "gradients"), [("sam", 2), ("gam_accelerated", 4)])
def test_the_time_of_a_goal_is_divided_by_its_floor(method, gradients):
    """A step that takes exactly as long as its gradients is at 1.00 of its floor."""
    runs = [
        {"name": name, "gradients": floor, "temporary_bytes": 1.0, "seconds": floor * np.ones(20)}
        for name, floor in ((GRADIENT, 1), (OPTAX_SAM, 2), (method, gradients))
    ]
    found = goals(runs, 1)[0]
    assert found.goal.startswith("time / floor")
    assert (found.measured, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.verdict == "met"


def test_every_method_of_the_registry_is_built_by_its_name():
    built = methods(list(METHODS), "sgd")
    assert [method.label for method in built] == list(METHODS)
