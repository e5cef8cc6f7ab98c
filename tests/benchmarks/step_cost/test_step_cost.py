"""The step-cost command: its results say how they were made, and its counts are right."""

import numpy as np
import pytest

from benchmarks.common.methods import METHODS
from benchmarks.step_cost.__main__ import main
from benchmarks.step_cost.contestants import methods
from benchmarks.step_cost.costs import networks
from benchmarks.step_cost.goals import goals
from benchmarks.step_cost.timing import (
    GRADIENT,
    GUARDED_OPTAX_SAM,
    OPTAX_SAM,
    UNGUARDED_SAM,
)
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
    own = ["sgd", "sam", "sam:rho=0.1:every=2"]
    assert names == [GRADIENT, *own, OPTAX_SAM, UNGUARDED_SAM, GUARDED_OPTAX_SAM]


def test_each_step_has_its_floor_its_analysis_and_its_times(written):
    steps = networks(written)[0].steps
    assert [one.gradients for one in steps] == [1, 1, 2, 1.5, 2, 2, 2]
    for one in steps:
        run = one.run
        assert min(run["flops"], run["temporary_bytes"], run["compile_seconds"]) > 0
        assert run["kernels"] > 0
        assert len(run["seconds"]) == 3
        ratios = np.divide(run["seconds"], steps[0].run["seconds"])
        assert one.time.median == pytest.approx(np.median(ratios))
    assert steps[2].run["flops"] > 1.9 * steps[0].run["flops"]


def test_each_goal_has_a_measurement_and_every_has_no_goals(written):
    found = goals(written["runs"], written["parameter_bytes"]["mlp"])
    of_sam = [goal for goal in found if goal.method == "sam"]
    words = [goal.goal.split()[0] for goal in of_sam]
    assert words == ["time", "time", "temporary", "compilation"]
    others = [(goal.method, goal.goal.split()[0]) for goal in found if goal.method != "sam"]
    assert others == [(UNGUARDED_SAM, "time"), ("sgd", "compilation")]
    for goal in of_sam[2:]:
        assert (goal.measured <= goal.limit) == (goal.verdict == "met")


@pytest.mark.parametrize(("optax_sam", "verdict"), [(10, "met"), (9, "missed")])
def test_compilation_is_compared_with_optax(optax_sam, verdict):
    """12 seconds are at most 1.2 times 10 seconds, and more than 1.2 times 9."""
    seconds = {GRADIENT: 5, "sgd": 5.5, "sam": 12, OPTAX_SAM: optax_sam}
    runs = [
        {
            "name": name,
            "optimizer": "sgd",
            "gradients": 1,
            "temporary_bytes": 1.0,
            "seconds": np.ones(20),
            "trace_seconds": 1.0,
            "compile_seconds": taken - 1.0,
        }
        for name, taken in seconds.items()
    ]
    found = {goal.method: goal for goal in goals(runs, 1) if goal.goal.startswith("compilation")}
    assert found["sgd"].measured == pytest.approx(1.1)
    assert found["sam"].verdict == verdict


def test_guarded_is_compared_with_guarded_sam():
    """Guarded with guarded, unguarded with unguarded."""
    times = {GRADIENT: 1, "sam": 2.1, OPTAX_SAM: 2, UNGUARDED_SAM: 2.2, GUARDED_OPTAX_SAM: 2.1}
    runs = [
        {"name": name, "gradients": 2, "temporary_bytes": 1.0, "seconds": time * np.ones(20)}
        for name, time in times.items()
    ]
    found = {goal.method: goal for goal in goals(runs, 1) if "optax" in goal.goal}
    assert (found["sam"].measured, found["sam"].verdict) == (1, "met")
    assert found[UNGUARDED_SAM].measured == pytest.approx(1.1)
    assert found[UNGUARDED_SAM].verdict == "missed"


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
