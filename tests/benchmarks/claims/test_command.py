"""The claims command: its runs, the verdicts, and judging them again."""

import json

import numpy as np
import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.claims import flatness
from benchmarks.claims.experiments import MissingRunsError, comparison_name, recorded_comparison
from benchmarks.claims.judging import FILE
from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.common.options import complete
from benchmarks.common.statistics.correctness import unpacked

QUICK = ("--quick", "--only=sam_and_gam,blind_to_the_gradient")


def made(folder, *arguments):
    assert claims.main([*(arguments or QUICK), f"--out={folder}"]) == 0
    return json.loads((folder / FILE).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    return folder, made(folder)


@pytest.mark.nightly
@pytest.mark.slow
def test_each_number_can_be_traced_to_runs(finished):
    folder, written = finished
    claim = written["claims"]["sam_and_gam"]
    (name,) = claim["folders"]
    kept = results.read(folder / name)
    assert "python -m benchmarks.compare" in kept["command"]
    examples = kept["dataset"]["test_examples"]
    correct = {
        (run["method"], run["seed"]): unpacked(run["correct"], examples) for run in kept["runs"]
    }
    for run in kept["runs"]:
        of_run = correct[run["method"], run["seed"]]
        assert of_run.mean() == pytest.approx(run["measured"]["test_accuracy"])
    sam, both = dict.fromkeys(method for method, _ in correct)
    gains = [100 * (correct[both, s].mean() - correct[sam, s].mean()) for s in (0, 1)]
    (found,) = claim["effects"]
    assert found["mean"] == pytest.approx(np.mean(gains))
    assert found["seeds"] == claim["seeds"] == 2
    assert (claim["verdict"], claim["reason"]) == ("no verdict", "a quick trial")


@pytest.mark.nightly
def test_only_curves_that_a_claim_reads_are_kept(finished):
    folder, _ = finished
    made(folder, "--quick", "--only=flatter_at_same_radius,sam_and_gam")
    with np.load(folder / "test" / "curves.npz") as arrays:
        assert set(arrays.files) == {"correct.run", "correct.value"}
    with np.load(folder / "test--flatness-along" / "curves.npz") as arrays:
        kept = {name for name in arrays.files if not name.endswith((".run", ".entry"))}
    assert kept == {"correct.value"} | {
        f"curve.curvature.{name}"
        for name in ("loss", "gradient_norm", "weight_norm", "lambda_max", "trace")
    }


@pytest.mark.nightly
def test_new_claims_are_added_to_a_folder(finished):
    folder, _ = finished
    before = json.loads((folder / FILE).read_text())
    only = "--only=curvature_below_first_order"
    after = made(folder, "--quick", only)
    assert set(after["checks"]) == {*before["checks"], "curvature_below_first_order"}
    assert after["claims"]["sam_and_gam"] == before["claims"]["sam_and_gam"]
    assert results.exist(folder / "test--flatness-end")
    assert claims.main(["--quick", only, "--epochs=1", f"--out={folder}"]) == 2
    assert claims.main(["--quick", only, "--seeds=3", f"--out={folder}"]) == 2


@pytest.mark.slow
def test_the_same_command_gives_the_same_verdicts(finished, tmp_path):
    for name, claim in made(tmp_path)["claims"].items():
        assert claim | {"command": ""} == finished[1]["claims"][name] | {"command": ""}


@pytest.mark.slow
def test_judging_again_gives_the_same_verdicts(finished):
    folder, _ = finished
    before = json.loads((folder / FILE).read_text())
    assert claims.main(["--judge", str(folder)]) == 0
    assert json.loads((folder / FILE).read_text()) == before


@pytest.mark.slow
def test_only_r1_distinguishes_the_comb_from_the_smooth_basin():
    r0, r1 = flatness.blind_to_the_gradient(None)
    assert r0.holds
    assert r1.holds
    # The slope of the comb at its largest, from a grid: |2w - (0.1 sin²(8πw)(1 - 4w²))'| ≤ ρ.
    w = np.linspace(-0.5, 0.5, 200_001)
    comb = w**2 - 0.1 * np.sin(8 * np.pi * w) ** 2 * (1 - (w / 0.5) ** 2)
    largest = np.abs(np.gradient(comb, w)).max()
    assert r1.value == pytest.approx(np.log2(largest / 1), abs=0.02)  # 2ρ = 1 for w²


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
    assert issubclass(MissingRunsError, UsageError)
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
