"""Verdicts: which evidence decides a claim, and how many claims are decided together."""

import json
import math
import pathlib

import numpy as np
import pytest

from benchmarks.claims import judging
from benchmarks.claims import verdict as rule
from benchmarks.claims.experiments import MissingRunsError
from benchmarks.claims.judging import FILE
from benchmarks.claims.registry import CLAIMS
from benchmarks.claims.table import checks_table, table
from benchmarks.claims.verdict import Check, above, missing, shown, within
from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.common.statistics.questions import verdicts

SETTING = {
    "data": "digits",
    "train_size": None,
    "model": "mlp",
    "epochs": None,
    "quick": False,
    "train_examples": 1437,
}
CLEAR = np.array([5.0, 5.1, 4.9, 5.05, 4.95])
WEAK = np.array([1.0, 3.0, 2.0, 0.2, 2.8])  # p = 0.03


def claim(*effects):
    found = [one._asdict() for one in effects]
    return {
        "statement": "s",
        "source": "p",
        "effects": found,
        "folders": [],
        "seeds": 5,
        "command": "python -m benchmarks.claims",
    }


def written(folder, quick=False, **claims):
    folder.mkdir()
    record = {"setting": SETTING | {"quick": quick}, "seeds": {}, "claims": claims}
    results.write_json(folder / FILE, record)


def verdict_of(*effects, quick=False):
    (found,) = verdicts([rule.question(effects, quick)])
    return rule.NAMES[found.verdict]


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([above("e", CLEAR)], "reproduced"),
        ([above("e", CLEAR), above("e", -CLEAR)], "not reproduced"),
        ([above("e", CLEAR), above("e", WEAK - 2)], "inconclusive"),
        ([above("e", CLEAR, 4)], "reproduced"),
        ([above("e", CLEAR, 6)], "not reproduced"),
        ([above("e", CLEAR), above("e", np.ones(5))], "no verdict"),
        ([above("e", CLEAR[:2])], "no verdict"),
        ([above("e", CLEAR), missing("e", "runs are missing")], "no verdict"),
        ([above("e", -CLEAR), missing("e", "runs are missing")], "not reproduced"),
        ([above("e", CLEAR), shown("e", -CLEAR)], "reproduced"),
        ([within("e", CLEAR - 5, 1.0, "25% of 4")], "reproduced"),
        ([within("e", CLEAR, 1.0, "25% of 4")], "not reproduced"),
        ([within("e", CLEAR - 5, math.nan, "25% of -1")], "no verdict"),
        ([above("e", [*CLEAR, math.nan])], "no verdict"),
    ],
)
def test_the_verdict_follows_from_the_effects(effects, expected):
    assert verdict_of(*effects) == expected
    assert verdict_of(*effects, quick=True) == "no verdict"


def test_an_effect_is_stored_as_it_was_tested(tmp_path):
    """The record holds what a verdict needs, so that a page is decided without its runs."""
    written(tmp_path / "a", one=claim(above("e", WEAK), shown("x", [1.0, math.inf])))
    record = judging.read(tmp_path / "a")
    judging.decide(tmp_path / "a", record)
    assert record["claims"]["one"]["verdict"] == "reproduced"
    assert record["claims"]["one"]["p"] == pytest.approx(2 * above("e", WEAK).p_for)


def test_verdicts_of_a_page_are_corrected_together(tmp_path):
    """Four claims of p = 0.03 each in two folders: not one is shown. Alone, each one is."""
    for name in ("a", "b"):
        written(tmp_path / name, one=claim(above("e", WEAK)), two=claim(above("e", WEAK)))
    together = judging.judge(tmp_path, {})
    assert [path.name for path in together] == ["a", "b"]
    for record in together.values():
        assert record["page"] == ["a", "b"]
        assert record["corrected_over"] == 4
        assert {one["verdict"] for one in record["claims"].values()} == {"inconclusive"}
    written(tmp_path / "c", one=claim(above("e", WEAK)))
    (alone,) = judging.judge(tmp_path / "c", {}).values()
    assert alone["claims"]["one"]["verdict"] == "reproduced"
    for folder, record in together.items():
        judging.save(folder, record, ["one", "two"])
    (again,) = judging.judge(tmp_path / "a", {}).values()
    assert again == together[tmp_path / "a"]
    (tmp_path / "b" / FILE).unlink()
    with pytest.raises(UsageError, match="b"):
        judging.judge(tmp_path / "a", {})


def test_a_folder_without_claims_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"does not contain claims\.json"):
        judging.judge(tmp_path, {})
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UsageError, match="Cannot read"):
        judging.judge(tmp_path, {})


def test_the_tables_show_predictions_reasons_and_checks(tmp_path):
    rare = within("gap", CLEAR - 5, 0.5, "25% of SAM's gain over sgd, 2 points")
    written(
        tmp_path / "a",
        one=claim(above("e", CLEAR, -1)),
        two=claim(rare),
        no=claim(missing("m", "runs are missing")),
    )
    record = judging.judge(tmp_path / "a", {})[tmp_path / "a"]
    checks = [Check("difference", 0.0, "≤ 0.1", True)._asdict()]
    checks += [Check("ratio", -1.5, "> 0", False)._asdict()]
    record["checks"] = {"c": {"statement": "s", "source": "p", "checks": checks}}
    text = table(record).markdown()
    assert "| s (p) | e | > -1 | 5 | 4.9 to 5.1 | 5 | **reproduced** |" in text
    assert "| within ±0.5 (25% of SAM's gain over sgd, 2 points) |" in text
    assert "| s (p) | m |  | - | - | 0 | **no verdict (runs are missing)** | - |" in text
    assert "2 reproduced, 1 no verdict." in text
    assert "correction over 2 verdicts" in text
    assert "seeds that the test runs have, too" in text
    text = checks_table(record).markdown()
    assert "| s (p) | difference | ≤ 0.1 | 0 | **yes** |" in text
    assert "|  | ratio | > 0 | -1.5 | **NO** |" in text


def test_a_claim_without_all_of_its_runs_is_skipped_or_an_error(tmp_path):
    """Skipped if it was never judged, because its command was interrupted."""
    written(tmp_path / "a", one=claim(above("e", CLEAR)))
    record = json.loads((tmp_path / "a" / FILE).read_text()) | {"seeds": {"below_sgd": 5}}
    results.write_json(tmp_path / "a" / FILE, record)
    (found,) = judging.judge(tmp_path / "a", CLAIMS).values()
    assert list(found["claims"]) == ["one"]
    record["claims"]["below_sgd"] = record["claims"]["one"]
    results.write_json(tmp_path / "a" / FILE, record)
    with pytest.raises(MissingRunsError, match="does not contain results"):
        judging.judge(tmp_path / "a", CLAIMS)


def test_a_folder_can_be_judged_from_inside(tmp_path, monkeypatch):
    written(tmp_path / "a", one=claim(above("e", CLEAR)))
    monkeypatch.chdir(tmp_path / "a")
    (found,) = judging.judge(pathlib.Path(), {}).values()
    assert found["claims"]["one"]["verdict"] == "reproduced"


def test_older_records_can_be_judged(tmp_path):
    """They lack the seeds, the page and the checks."""
    old = {"setting": SETTING, "claims": {"partial_penalty": claim(above("e", CLEAR))}}
    (tmp_path / FILE).write_text(json.dumps(old))
    record = judging.read(tmp_path)
    assert record["seeds"] == {"partial_penalty": 5, "ends_of_the_penalty": 5}
    assert record["page"] == [tmp_path.name]
    assert record["checks"] == {}
