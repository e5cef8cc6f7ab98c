"""The claims command: verdicts, what its numbers are made of, and that they come out again."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.claims import table as _claims_table
from benchmarks.claims.effects import (
    Effect,
    effect,
    flatter_at_same_loss,
    flatter_on_the_way,
    verdict,
)
from benchmarks.claims.experiments import Runs, Setting
from benchmarks.common import results as _results
from benchmarks.page import __main__ as page

pytestmark = pytest.mark.slow

QUICK = ("--quick", "--only=sam_and_gam,blind_to_the_gradient")


def judged(folder):
    assert claims.main([*QUICK, f"--out={folder}"]) == 0
    return json.loads((folder / claims.FILE).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    return folder, judged(folder)


def test_every_number_goes_back_to_the_results_of_a_command(finished):
    folder, written = finished
    (run,) = written["runs"]
    name, command = run.split(": ")
    results = json.loads((folder / name / "results.json").read_text())
    assert results["command"] == command
    accuracy = {
        (run["method"], run["seed"]): run["measured"]["test_accuracy"] for run in results["runs"]
    }
    sam, both = dict.fromkeys(method for method, _ in accuracy)
    gains = [100 * (accuracy[both, seed] - accuracy[sam, seed]) for seed in (0, 1)]
    (found,) = written["claims"]["sam_and_gam"]["effects"]
    assert found["mean"] == pytest.approx(np.mean(gains) + 0.5)
    assert found["seeds"] == 2


def test_the_page_shows_each_folder_and_all_verdicts_at_a_glance(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "claims-digits")
    assert page.main(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    for claim in finished[1]["claims"].values():
        assert f"| {claim['statement']} | {claim['verdict']} |" in text
        assert claim["command"] in text
    assert "[claims.json](claims-digits/claims.json)" in text


def test_claims_join_those_that_the_folder_has(finished):
    folder, before = finished
    only = "--only=curvature_below_first_order"
    assert claims.main(["--quick", only, f"--out={folder}"]) == 0
    after = json.loads((folder / claims.FILE).read_text())
    assert set(after["claims"]) == {*before["claims"], "curvature_below_first_order"}
    assert set(after["runs"]) > set(before["runs"])
    assert claims.main(["--quick", only, "--epochs=1", f"--out={folder}"]) == 2


def test_the_same_command_finds_the_same(finished, tmp_path):
    for name, claim in judged(tmp_path)["claims"].items():
        assert claim | {"command": ""} == finished[1]["claims"][name] | {"command": ""}


def test_two_basins_which_only_first_order_flatness_tells_apart(finished):
    claim = finished[1]["claims"]["blind_to_the_gradient"]
    assert claim["verdict"] == "reproduced"
    assert all(one["mean"] > 0 for one in claim["effects"])


def curvatures(losses, values):
    return {
        "curve": [
            {"curvature": {"loss": x, "trace": y}} for x, y in zip(losses, values, strict=True)
        ]
    }


def test_flatter_by_a_factor_at_each_moment_and_at_each_loss():
    losses = np.array([2.0, 1.0, 0.5])
    runs = Runs(
        {
            # trace = loss², and 8 loss², of which the second is ahead by one moment
            ("flat", 0): curvatures(losses, losses**2),
            ("sharp", 0): curvatures(losses / 2, 8 * (losses / 2) ** 2),
        }
    )
    assert flatter_on_the_way(runs, "flat", "sharp", "trace") == pytest.approx([1])
    assert flatter_at_same_loss(runs, "flat", "sharp", "trace") == pytest.approx([3])


def test_an_interval_is_students():
    found = effect("x", [1.0, 2.0, 3.0, np.nan])
    half = 4.302652729749464 / 3**0.5  # t of 2 degrees of freedom at 97.5%
    assert (found.mean, found.seeds) == (2, 3)
    np.testing.assert_allclose((found.low, found.high), (2 - half, 2 + half))


def test_one_seed_has_no_interval_neither_fresh_nor_out_of_a_file(tmp_path):
    setting = Setting("digits", None, None, "mlp", None, 5, False)
    claim = {"statement": "s", "source": "p", "command": "c", "verdict": "inconclusive"}
    fresh = {"claims": {"one": claim | {"effects": [effect("e", [2.0, np.inf])._asdict()]}}}
    _results.save(tmp_path, fresh, claims.FILE)
    kept = json.loads((tmp_path / claims.FILE).read_text())
    for record in (fresh, kept):
        table = _claims_table.markdown(record["claims"], setting)
        assert "| s (p) | e | 2 | nan to nan | 1 | **inconclusive** |" in table


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 2), (0.1, 3)], "reproduced"),
        ([(1, 2), (-0.1, 3)], "inconclusive"),
        ([(1, 2), (-3, -0.1)], "not reproduced"),
        ([(np.nan, np.nan)], "inconclusive"),
    ],
)
def test_a_claim_is_reproduced_if_all_its_intervals_are_above_zero(intervals, expected):
    effects = [Effect("x", (low + high) / 2, low, high, 5) for low, high in intervals]
    assert verdict(effects) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=everything"], "there are below_sgd, "),
        (["--seeds=1"], "needs at least 2"),
        (["--sedes=5"], "unrecognized arguments"),
    ],
)
def test_a_mistake_of_usage_is_one_paragraph(arguments, message, capsys):
    assert claims.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
