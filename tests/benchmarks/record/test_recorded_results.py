"""The record in benchmarks/results: small, readable, and the source of every verdict."""

import json
import re

import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.claims import judging
from benchmarks.common import results
from benchmarks.common.statistics.estimates import number
from benchmarks.page import __main__ as page

RECORDS = sorted(page.RESULTS.glob("claims-*"))
FILES = {*results.FILES, judging.FILE, page.PAGE, "table.md"}
COMPUTED = "blind_to_the_gradient"  # which reads no runs: tested in test_claims.py
STATEMENTS = {name: one for name, one in claims.STATEMENTS.items() if name != COMPUTED}


def recorded(folder):
    return json.loads((folder / judging.FILE).read_text())


def test_judging_again_gives_the_recorded_verdicts():
    """All of the page, and one folder alone, whose verdicts are corrected over the page, too."""
    found = judging.judge(page.RESULTS, STATEMENTS)
    assert list(found) == RECORDS
    alone = {"below_sgd_noisy": STATEMENTS["below_sgd_noisy"]}
    (again,) = judging.judge(RECORDS[0], alone).values()
    for record in (again, found[RECORDS[0]]):
        assert record["corrected_over"] == recorded(RECORDS[0])["corrected_over"]
        for name, claim in recorded(RECORDS[0])["claims"].items():
            assert record["claims"][name]["verdict"] == claim["verdict"]
    for folder, record in found.items():
        kept = recorded(folder)
        assert record.keys() == kept.keys()
        assert record["page"] == [one.name for one in RECORDS]
        numbers = {"effects": [], "checks": [], "p": None}
        for section, inner in (("claims", "effects"), ("checks", "checks")):
            assert set(record[section]) == set(kept[section])
            for name in set(kept[section]) - {COMPUTED}:
                one, expected = record[section][name], kept[section][name]
                assert one | numbers == expected | numbers
                for new, old in zip(one[inner], expected[inner], strict=True):
                    assert_close(new, old)


def assert_close(new, old):
    assert new.keys() == old.keys()
    for name, value in new.items():
        if isinstance(value, float):
            near = pytest.approx(number(old[name]), rel=1e-9, abs=1e-9, nan_ok=True)
            assert number(value) == near
        else:
            assert value == old[name]


def test_each_recorded_comparison_is_read_by_a_claim():
    for record in RECORDS:
        kept = recorded(record)["claims"] | recorded(record)["checks"]
        read = {name for one in kept.values() for name in one["folders"]}
        assert read == {path.name for path in record.iterdir() if path.is_dir()}


def test_the_record_is_at_most_eight_megabytes():
    blocks = [-(-path.stat().st_size // 4096) for path in page.RESULTS.rglob("*")]
    assert 4 * sum(blocks) <= 8 * 1024


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


def test_the_page_has_a_section_per_folder_and_unique_headings():
    text = (page.RESULTS / page.PAGE).read_text()
    headings = re.findall("^#+ .*", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    for table in page.RESULTS.glob("*/table.md"):
        assert any(f"({table.parent.name}" in heading for heading in headings)


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert page.main(["--check"]) == 0
