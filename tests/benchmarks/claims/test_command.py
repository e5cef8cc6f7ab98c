"""The claims command: verdicts, the quantities that they are based on, and their repetition."""

import json

import numpy as np
import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.claims.effects import Runs, flatter_at_same_loss, flatter_during_training
from benchmarks.claims.experiments import comparison_name, recorded_comparison
from benchmarks.claims.table import table
from benchmarks.claims.verdict import Effect, effect, verdict
from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.common.options import complete

QUICK = ("--quick", "--only=sam_and_gam,blind_to_the_gradient")


def judged(folder, *arguments):
    assert claims.main([*(arguments or QUICK), f"--out={folder}"]) == 0
    return json.loads((folder / claims.FILE).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    return folder, judged(folder)


@pytest.mark.slow
def test_each_number_can_be_traced_to_runs(finished):
    folder, written = finished
    claim = written["claims"]["sam_and_gam"]
    (name,) = claim["folders"]
    kept = results.read(folder / name)
    assert "python -m benchmarks.compare" in kept["command"]
    accuracy = {
        (run["method"], run["seed"]): run["measured"]["test_accuracy"] for run in kept["runs"]
    }
    sam, both = dict.fromkeys(method for method, _ in accuracy)
    gains = [100 * (accuracy[both, seed] - accuracy[sam, seed]) for seed in (0, 1)]
    (found,) = claim["effects"]
    assert found["mean"] == pytest.approx(np.mean(gains) + 0.5)
    assert found["seeds"] == claim["seeds"] == 2


@pytest.mark.slow
def test_only_curves_that_a_claim_reads_are_kept(finished):
    folder, _ = finished
    judged(folder, "--quick", "--only=flatter_at_same_radius,sam_and_gam")
    assert not (folder / "test" / "curves.npz").exists()
    with np.load(folder / "test--flatness-along" / "curves.npz") as arrays:
        kept = {name for name in arrays.files if not name.endswith((".run", ".entry"))}
    assert kept == {
        f"curve.curvature.{name}"
        for name in ("loss", "gradient_norm", "weight_norm", "lambda_max", "trace")
    }


@pytest.mark.slow
def test_new_claims_are_added_to_a_folder(finished):
    folder, _ = finished
    before = json.loads((folder / claims.FILE).read_text())
    only = "--only=curvature_below_first_order"
    after = judged(folder, "--quick", only)
    assert set(after["claims"]) == {*before["claims"], "curvature_below_first_order"}
    assert after["claims"]["sam_and_gam"] == before["claims"]["sam_and_gam"]
    assert results.exist(folder / "test--flatness-end")
    assert claims.main(["--quick", only, "--epochs=1", f"--out={folder}"]) == 2


@pytest.mark.slow
def test_the_same_command_gives_the_same_verdicts(finished, tmp_path):
    for name, claim in judged(tmp_path)["claims"].items():
        assert claim | {"command": ""} == finished[1]["claims"][name] | {"command": ""}


@pytest.mark.slow
def test_recomputing_gives_the_same_verdicts(finished):
    folder, _ = finished
    before = json.loads((folder / claims.FILE).read_text())
    assert judged(folder, "--recompute") == before


@pytest.mark.slow
def test_only_r1_distinguishes_the_comb_from_the_smooth_basin(finished):
    claim = finished[1]["claims"]["blind_to_the_gradient"]
    assert claim["verdict"] == "reproduced"
    assert all(one["mean"] > 0 for one in claim["effects"])


def curvatures(losses, values):
    return {
        "curve": [
            {"curvature": {"loss": x, "trace": y}} for x, y in zip(losses, values, strict=True)
        ]
    }


def test_flatter_during_training_and_at_the_same_loss():
    """Two runs whose measures differ by known powers of two."""
    losses = np.array([2.0, 1.0, 0.5])
    runs = Runs(
        {
            # The trace is loss² and 8 loss²; the second run is ahead by one measurement.
            ("flat", 0): curvatures(losses, losses**2),
            ("sharp", 0): curvatures(losses / 2, 8 * (losses / 2) ** 2),
        }
    )
    assert flatter_during_training(runs, "flat", "sharp", "trace") == pytest.approx([1])
    assert flatter_at_same_loss(runs, "flat", "sharp", "trace") == pytest.approx([3])


def test_the_interval_is_from_students_t():
    found = effect("x", [1.0, 2.0, 3.0, np.nan])
    half = 4.302652729749464 / 3**0.5  # the 97.5% quantile of t with 2 degrees of freedom
    assert (found.mean, found.seeds) == (2, 3)
    np.testing.assert_allclose((found.low, found.high), (2 - half, 2 + half))


def test_equal_values_have_an_interval_of_length_zero():
    found = effect("x", [0.1, 0.1, 0.1])
    np.testing.assert_allclose((found.mean, found.low, found.high), 0.1, rtol=1e-15)


def test_one_seed_has_no_interval_before_and_after_saving(tmp_path):
    setting = {"data": "digits", "model": "mlp"}
    claim = {"statement": "s", "source": "p", "command": "c", "verdict": "inconclusive"}
    fresh = {"claims": {"one": claim | {"effects": [effect("e", [2.0, np.inf])._asdict()]}}}
    results.write_json(tmp_path / claims.FILE, fresh)
    kept = json.loads((tmp_path / claims.FILE).read_text())
    for record in (fresh, kept):
        text = table(record["claims"], setting).markdown()
        assert "| s (p) | e | 2 | - | 1 | **inconclusive** |" in text


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 2), (0.1, 3)], "reproduced"),
        ([(1, 2), (-0.1, 3)], "inconclusive"),
        ([(1, 2), (-3, -0.1)], "not reproduced"),
        ([(np.nan, np.nan)], "inconclusive"),
    ],
)
def test_the_verdict_follows_from_the_intervals(intervals, expected):
    effects = [Effect("x", (low + high) / 2, low, high, 5) for low, high in intervals]
    assert verdict(effects) == expected


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"evaluate_on": "test", "flatness": "no"}, "test"),
        ({"flatness": "along", "evaluate_on": "test"}, "test--flatness-along"),
        (
            {"evaluate_on": "validation", "model": "mlp:dropout=0.6", "label_noise": 0.4},
            "validation--label-noise-0.4--model-mlp-dropout-0.6",
        ),
        (
            {"evaluate_on": "test", "warmup_epochs": 8.0, "optimizer": "adamw"},
            "test--optimizer-adamw--warmup-epochs-8",
        ),
    ],
)
def test_a_folder_is_named_after_its_options(options, name):
    assert comparison_name(options) == name


def test_names_of_different_options_differ():
    names = {
        comparison_name({"evaluate_on": "test", "model": model})
        for model in ("mlp:width=5", "mlp width 5", "mlp/width/5")
    }
    assert len(names) == 3
    assert all("/" not in name and " " not in name for name in names)


def test_a_missing_or_different_run_is_not_taken_from_the_record(tmp_path):
    options = complete(methods="sgd,sam", seeds=2)
    with pytest.raises(UsageError, match="does not contain results"):
        recorded_comparison(options, tmp_path)
    runs = [{"method": "sgd", "seed": seed} for seed in (0, 1)] + [{"method": "sam", "seed": 0}]
    results.save(tmp_path, {"configuration": options._asdict(), "runs": runs})
    with pytest.raises(UsageError, match="lacks the run of sam with seed 1"):
        recorded_comparison(options, tmp_path)
    assert len(recorded_comparison(options._replace(seeds=1), tmp_path)["runs"]) == 3
    with pytest.raises(UsageError, match=r"was made with label_noise = 0\.0"):
        recorded_comparison(options._replace(seeds=1, label_noise=0.1), tmp_path)


def test_an_interrupted_lipschitz_run_is_not_deleted(tmp_path):
    """The record lacks a seed, and the command that made it cannot continue it."""
    kept = {"methods": ["plain"], "configuration": {}, "runs": [{"method": "plain", "seed": 0}]}
    results.save(tmp_path, kept)
    with pytest.raises(UsageError, match="Delete this folder"):
        claims._lipschitz({"seeds": 2}, tmp_path, None, None)
    assert results.read(tmp_path) == kept
    assert claims._lipschitz({"seeds": 1}, tmp_path, None, None) == kept
