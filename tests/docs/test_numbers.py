"""Numbers in the README and in the guides are those of the recorded results.

If the record changes, this test names the numbers in the text that are out of date.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/guides/choosing.md",
    "docs/guides/cheaper_sam.md",
    "docs/project/benchmarks.md",
)
BEDS = ("digits, mlp", "digits, mlp, 40% wrong labels")  # of the columns in the guides
GAIN = r"[-+][\d.]+ \([-+][\d.]+ to [-+][\d.]+\)"  # with its interval, as the page writes it


@pytest.mark.parametrize("page", PAGES)
def test_gains_and_radii_stand_on_the_page_of_results(page):
    results = (ROOT / "benchmarks/results/RESULTS.md").read_text(encoding="utf-8")
    text = (ROOT / page).read_text(encoding="utf-8")
    gains = set(re.findall(GAIN, " ".join(text.split())))
    assert gains
    assert {gain for gain in gains if gain not in results} == set()
    radii = set(re.findall(r"ρ = ([\d.]*\d)", text))
    assert {radius for radius in radii if f"rho {radius}" not in results} == set()


@pytest.mark.parametrize("page", PAGES[1:3])
def test_tables_of_gains_are_those_of_the_page(page):
    """A row of a guide has the gains of the row of the same method on the page."""
    results = (ROOT / "benchmarks/results/RESULTS.md").read_text(encoding="utf-8")
    table = results.split("### Gain over the tuned plain optimizer")[1].split("###")[0]
    head, _, *body = [line.split("|")[1:-1] for line in table.splitlines() if line[:1] == "|"]
    columns = [[one.strip() for one in head].index(bed) for bed in BEDS]
    of_method = {
        row[0].strip(): [re.findall(GAIN, row[column])[0] for column in columns] for row in body[1:]
    }
    names = {
        "weight averaging (EMA)": "ema",
        "sam with ascent_fraction=0.1": "sam:ascent_fraction=0.1",
    }
    names |= {"every(sam(rho), 5)": "sam:every=5", "looksam(rho, k=5)": "looksam:k=5"}
    names |= {"SAM in the last fifth of the steps (after)": "sam:tail=0.2"}
    names |= {"revisit, group=4": "revisit"}
    rows = [
        (cells[1].strip().replace("`", ""), re.findall(GAIN, line))
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if (cells := line.split("|")) and len(re.findall(GAIN, line)) == 2 and len(cells) > 3
    ]
    assert len(rows) > 5
    for name, gains in rows:
        assert gains == of_method[names.get(name, name)], name
