"""The page of results: every table and verdict, unique headings, and a check without writing."""

import json
import re

import pytest

from benchmarks.claims.registry import CHECKS
from benchmarks.page.__main__ import main

SETTING = {"data": "digits", "model": "mlp", "quick": False, "train_examples": 1437}
EFFECT = {"quantity": "accuracy, points", "prediction": "> 0", "mean": 1.5, "low": -1, "high": 4}
EFFECT |= {"seeds": 5, "p_for": 0.2, "p_against": 0.8, "reason": ""}
COMMON = {"statement": "a statement", "source": "arXiv", "folders": [], "command": "a command"}


@pytest.fixture
def recorded(tmp_path):
    """Two folders with tables of the same title, one of them with claims and a figure."""
    for name in ("claims-digits", "other"):
        (tmp_path / name).mkdir()
        text = "# Title\n\n    the command\n\n## One\n\n### Goals\n\n## Two\n\n### Goals\n"
        (tmp_path / name / "table.md").write_text(text)
        (tmp_path / name / "manifest.json").write_text("{}")
    check = {"quantity": "q", "value": 1.0, "condition": "≤ 2"}
    claims = {"below_sgd": COMMON | {"effects": [EFFECT]}}
    both = [check | {"holds": True}, check | {"holds": False}]
    checks = {"blind_to_the_gradient": COMMON | {"checks": both}}
    content = {"setting": SETTING, "claims": claims, "checks": checks, "corrected_over": 1}
    record = json.dumps(content)
    (tmp_path / "claims-digits" / "claims.json").write_text(record)
    (tmp_path / "other" / "figure.png").write_bytes(b"")
    return tmp_path


def test_the_page_shows_tables_figures_and_verdicts(recorded):
    assert main([f"--results={recorded}"]) == 0
    text = (recorded / "RESULTS.md").read_text()
    assert "| a statement (arXiv) | inconclusive | accuracy, points: +1.5 (-1 to +4)" in text
    assert f"| {CHECKS['blind_to_the_gradient'].statement} | NO |" in text
    assert text.count("    a command") == 1
    assert text.count("    the command") == 1
    assert "[claims.json](claims-digits/claims.json)" in text
    assert "[manifest.json](other/manifest.json)" in text
    assert "(other/figure.png)" in text


def test_the_headings_of_the_page_are_unique(recorded):
    assert main([f"--results={recorded}"]) == 0
    headings = re.findall("^#+ .*", (recorded / "RESULTS.md").read_text(), re.MULTILINE)
    assert "## Claims on digits, mlp (claims-digits)" in headings
    assert "## Title (other)" in headings
    assert "### One (other)" in headings
    assert "#### Goals (other: One)" in headings
    assert "#### Goals (other: Two)" in headings
    assert len(headings) == len(set(headings))


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
