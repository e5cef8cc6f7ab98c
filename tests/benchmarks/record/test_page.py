"""The page of results: every table and verdict, unique headings, and a check without writing."""

import json
import re

import pytest

from benchmarks.claims.registry import CHECKS, CLAIMS
from benchmarks.page.__main__ import main

SETTING = {"data": "digits", "model": "mlp"}


@pytest.fixture
def recorded(tmp_path):
    """Two folders with tables of the same title, one of them with claims and a figure."""
    for name in ("claims-digits", "other"):
        (tmp_path / name).mkdir()
        text = "# Title\n\n    the command\n\n## One\n\n### Goals\n\n## Two\n\n### Goals\n"
        (tmp_path / name / "table.md").write_text(text)
        (tmp_path / name / "manifest.json").write_text("{}")
    claims = {"below_sgd": {"verdict": "inconclusive"}}
    checks = {"blind_to_the_gradient": {"checks": [{"holds": True}, {"holds": False}]}}
    record = json.dumps({"setting": SETTING, "claims": claims, "checks": checks})
    (tmp_path / "claims-digits" / "claims.json").write_text(record)
    (tmp_path / "other" / "figure.png").write_bytes(b"")
    return tmp_path


def test_the_page_shows_tables_figures_and_verdicts(recorded):
    assert main([f"--results={recorded}"]) == 0
    text = (recorded / "RESULTS.md").read_text()
    assert f"| {CLAIMS['below_sgd'].statement} | inconclusive |" in text
    assert f"| {CHECKS['blind_to_the_gradient'].statement} | NO |" in text
    assert text.count("the command") == 2
    assert "[claims.json](claims-digits/claims.json)" in text
    assert "[manifest.json](other/manifest.json)" in text
    assert "(other/figure.png)" in text


def test_the_headings_of_the_page_are_unique(recorded):
    assert main([f"--results={recorded}"]) == 0
    headings = re.findall("^#+ .*", (recorded / "RESULTS.md").read_text(), re.MULTILINE)
    assert "## Title (other)" in headings
    assert "### One (other)" in headings
    assert "#### Goals (other: One)" in headings
    assert "#### Goals (claims-digits: Two)" in headings
    assert len(headings) == len(set(headings)) == 13


def test_check_does_not_write(recorded, capsys):
    assert main([f"--results={recorded}", "--check"]) == 1
    assert not (recorded / "RESULTS.md").exists()
    assert main([f"--results={recorded}"]) == 0
    assert main([f"--results={recorded}", "--check"]) == 0
    (recorded / "other" / "table.md").write_text("# New\n")
    assert main([f"--results={recorded}", "--check"]) == 1
    assert "out of date" in capsys.readouterr().out


def test_help_does_not_write(recorded, monkeypatch):
    monkeypatch.setattr("benchmarks.page.__main__.RESULTS", recorded)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert not (recorded / "RESULTS.md").exists()


def test_a_missing_folder_is_a_usage_error(tmp_path, capsys):
    assert main([f"--results={tmp_path / 'missing'}"]) == 2
    assert "--results FOLDER" in capsys.readouterr().err
