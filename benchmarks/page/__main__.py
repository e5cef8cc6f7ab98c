"""Writes benchmarks/results/RESULTS.md: what all recorded results say, and their tables.

    python -m benchmarks.page
    python -m benchmarks.page --check

The top of the page is made from the numbers in the folders of `benchmarks/results`: sentences,
figures, the verdicts on all claims, and the cost of a step. Below it are the tables and figures of
each folder, with links to the files that have all numbers.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.claims.registry import CHECKS
from benchmarks.common import cli
from benchmarks.common.cli import UsageError
from benchmarks.common.table import Table
from benchmarks.page import (
    ablation,
    beds_table,
    claims_table,
    costs,
    details,
    figures,
    method,
    price,
    words,
)
from benchmarks.page.evidence import Evidence, read
from benchmarks.page.sentences import sentences

RESULTS = pathlib.Path(__file__).parents[1] / "results"
PAGE = "RESULTS.md"
HEAD = """# Results

This page is written by `python -m benchmarks.page` from the folders beside it. Behind each sentence
is a link to the files that its numbers come from. Differences are in percentage points of test
accuracy, with 95% intervals in parentheses; costs are gradient evaluations, and 1 is the length of
the reference training."""
DETAILS = """## All recorded folders

The command that made a table stands above it. The links below it lead to all numbers:
`manifest.json` has the commands, the revision of the code, the versions, the configuration and the
data set, `runs.csv` has one row per run, and `curves.npz` has what was recorded several times per
run. A folder of claims has one such folder per comparison."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 if --check fails, 2 after a usage error."""
    return cli.exit_code(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        "page",
        description=f"Writes {PAGE}, which says what all recorded results show, and its figures.",
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=RESULTS,
        help="folder with one folder per command (default: benchmarks/results)",
    )
    parser.add_argument(
        "--check",
        "--quick",
        action="store_true",
        help=f"only check {PAGE}, without writing; exit with 1 if it is out of date",
    )
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        raise UsageError(f"{args.results} is not a folder. Name one with --results FOLDER.")
    file = args.results / PAGE
    evidence = read(args.results)
    text = page(args.results, evidence)
    if args.check:
        current = file.exists() and file.read_text(encoding="utf-8") == text
        print(f"{file} is {'up to date' if current else 'out of date: run without --check'}.")
        return 0 if current else 1
    file.write_text(text, encoding="utf-8")
    drawn = figures.draw(args.results, evidence)
    print(f"Written to {args.results}: {', '.join([PAGE, *drawn])}")
    return 0


def page(folder: pathlib.Path, evidence: Evidence) -> str:
    """Returns the page in Markdown.

    Args:
      folder: the folder with one folder per command.
      evidence: what these folders show.
    """
    numbered = [f"{i}. {one}" for i, one in enumerate(sentences(evidence), 1)]
    of_step = costs.table(evidence, folder)
    parts = [
        HEAD,
        _part("What to use, what it buys, and what does not hold", ["\n".join(numbered)]),
        _part(words.FRONTIERS, _overview(evidence), beds_table.tables(evidence)),
        _part("SAM at a lower price", [], price.tables(evidence)),
        _part(
            "What makes revisit work",
            ["\n".join(f"- {one}" for one in ablation.sentences(evidence))],
            ablation.tables(evidence),
        ),
        of_step.markdown(level=2).strip() if of_step else "",
        *(table.markdown(level=2).strip() for table in claims_table.tables(evidence)),
        _checks(evidence),
        _part("How it was measured", [method.text(evidence)]),
        DETAILS,
        *details.sections(folder, evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _part(title: str, texts: Sequence[str], tables: Sequence[Table] = ()) -> str:
    """A section with a heading; nothing if it is empty."""
    found = [*texts, *(table.markdown(level=3).strip() for table in tables)]
    return "\n\n".join([f"## {title}", *found]) if any(found) else ""


def _overview(evidence: Evidence) -> list[str]:
    """The links to the tables of all beds, and the figures of the page."""
    if not evidence.beds:
        return []
    beds = f"The tables of all beds: {words.links([bed.folder for bed in evidence.beds])}."
    return [beds, *(f"![{pathlib.Path(one).stem}]({one})" for one in figures.names(evidence))]


def _checks(evidence: Evidence) -> str:
    """What holds by construction: a row per check, and a column per data set and network."""
    found = [one for one in evidence.claims.values() if one.get("checks")]
    rows = []
    for name, check in CHECKS.items():
        outcomes = [one["checks"].get(name) for one in found]
        if any(outcomes):
            rows.append([check.statement, *map(_holds, outcomes)])
    if not rows:
        return ""
    settings = [f"{one['setting']['data']}, {one['setting']['model']}" for one in found]
    align = "l" * (1 + len(settings))
    title = "Checks at a glance"
    table = Table(title, ["holds by construction", *settings], rows, "", align)
    return table.markdown(level=2).strip()


def _holds(check: dict[str, Any] | None) -> str:
    if check is None:
        return ""
    return "yes" if all(one["holds"] for one in check["checks"]) else "NO"


if __name__ == "__main__":
    cli.start(main)
