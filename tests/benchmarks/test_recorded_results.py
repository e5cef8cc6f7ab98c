"""The record in benchmarks/results: small, readable, and the source of every verdict."""

import json
import re
import shutil

import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.common import results
from benchmarks.common.statistics.estimates import number
from benchmarks.page import __main__ as page

RECORDS = sorted(page.RESULTS.glob("claims-*"))
FILES = {*results.FILES, claims.FILE, page.PAGE, "table.md"}
COMPUTED = "blind_to_the_gradient"  # which reads no runs: tested in test_claims.py


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_recomputed_verdicts_equal_the_recorded_ones(record, tmp_path):
    for path in record.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    before = json.loads((record / claims.FILE).read_text())["claims"]
    names = [name for name in before if name != COMPUTED]
    after = claims.recompute(tmp_path, names)["claims"]
    for name in names:
        assert after[name] | {"effects": []} == before[name] | {"effects": []}
        for found, kept in zip(after[name]["effects"], before[name]["effects"], strict=True):
            assert (found["quantity"], found["seeds"]) == (kept["quantity"], kept["seeds"])
            for end in ("mean", "low", "high"):
                expected = pytest.approx(number(kept[end]), rel=1e-12, abs=1e-12, nan_ok=True)
                assert number(found[end]) == expected


def test_each_recorded_comparison_is_read_by_a_claim():
    for record in RECORDS:
        kept = json.loads((record / claims.FILE).read_text())["claims"]
        read = {name for claim in kept.values() for name in claim["folders"]}
        assert read == {path.name for path in record.iterdir() if path.is_dir()}


def test_the_record_is_at_most_five_megabytes():
    blocks = [-(-path.stat().st_size // 4096) for path in page.RESULTS.rglob("*")]
    assert 4 * sum(blocks) <= 5 * 1024


def test_each_manifest_names_its_command_and_versions():
    manifests = list(page.RESULTS.rglob(results.MANIFEST))
    assert manifests
    for file in manifests:
        manifest = json.loads(file.read_text())
        assert manifest["command"].startswith("python -m benchmarks.")
        assert manifest["environment"].keys() >= {"flatreg", "python", "jax", "device"}
        assert manifest["configuration"]
        assert len(results.read(file.parent)["runs"]) > 0


def test_each_recorded_file_is_read_by_a_command():
    shown = (page.RESULTS / page.PAGE).read_text()
    for path in page.RESULTS.rglob("*"):
        if path.is_file() and path.name not in FILES:
            assert f"({path.relative_to(page.RESULTS)})" in shown


def test_the_page_is_up_to_date_and_its_headings_are_unique():
    assert page.main(["--check"]) == 0
    text = (page.RESULTS / page.PAGE).read_text()
    headings = re.findall("^#+ .*", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
