"""Writes benchmarks/results/RESULTS.md: the tables and figures of all recorded results.

    python -m benchmarks.page
    python -m benchmarks.page --check

Every folder in `benchmarks/results` was written by one command. Its table.md and figures are shown,
with links to the files that have all numbers.
"""

import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.claims.claim import Checked, Claim
from benchmarks.claims.registry import CHECKS, CLAIMS
from benchmarks.common import cli, results
from benchmarks.common.cli import UsageError
from benchmarks.common.table import Table

RESULTS = pathlib.Path(__file__).parents[1] / "results"
PAGE = "RESULTS.md"
CLAIMS_FILE = "claims.json"
HEAD = """# Results

This page is written by `python -m benchmarks.page` from the folders beside it. The command that
made a table stands above it. The links below it lead to all numbers: `manifest.json` has the
commands, the revision of the code, the versions, the configuration and the data set, `runs.csv`
has one row per run, and `curves.npz` has what was recorded several times per run. A folder of
claims has one such folder per comparison."""

GLANCE = (
    "All verdicts of this table are corrected together by Holm's method: the probability of any "
    "false one among them is at most 5%. There is no verdict where runs are missing or could not "
    "decide; the tables below say why."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 if --check fails, 2 after a usage error."""
    return cli.exit_code(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        "page", description=f"Writes {PAGE}: the tables and figures of all recorded results."
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
    text = page(args.results)
    if args.check:
        current = file.exists() and file.read_text(encoding="utf-8") == text
        print(f"{file} is {'up to date' if current else 'out of date: run without --check'}.")
        return 0 if current else 1
    file.write_text(text, encoding="utf-8")
    print(f"Written: {file}")
    return 0


def page(folder: pathlib.Path) -> str:
    """Returns the page in Markdown, with a section per folder that has a table.md."""
    parts = [HEAD, _at_a_glance(folder)]
    parts += [_section(table.parent) for table in sorted(folder.glob("*/table.md"))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _at_a_glance(folder: pathlib.Path) -> str:
    """A row per claim, and a column per data set and network that it was tested on."""
    tested = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"*/{CLAIMS_FILE}"))
    ]
    if not tested:
        return ""
    settings = [f"{one['setting']['data']}, {one['setting']['model']}" for one in tested]
    claims = _rows([one["claims"] for one in tested], CLAIMS, lambda claim: claim["verdict"])
    checks = _rows(
        [one.get("checks", {}) for one in tested],
        CHECKS,
        lambda check: "yes" if all(one["holds"] for one in check["checks"]) else "NO",
    )
    align = "l" * (1 + len(settings))
    tables = [
        Table("Claims at a glance", ["claim", *settings], claims, GLANCE, align),
        Table("Checks at a glance", ["holds by construction", *settings], checks, "", align),
    ]
    return "\n\n".join(one.markdown(level=2).strip() for one in tables if one.rows)


def _rows(
    tested: Sequence[dict[str, Any]],
    statements: Mapping[str, Claim | Checked],
    outcome: Callable[[dict[str, Any]], str],
) -> list[list[str]]:
    """The outcome of each statement in each setting, where it was tested in any."""
    rows = []
    for name, statement in statements.items():
        found = [outcome(one[name]) if name in one else "" for one in tested]
        if any(found):
            rows.append([statement.statement, *found])
    return rows


def _section(folder: pathlib.Path) -> str:
    """Returns the table and the figures of a folder, with links to its numbers."""
    text = _with_unique_headings((folder / "table.md").read_text(encoding="utf-8"), folder.name)
    figures = [
        f"![{path.stem} of {folder.name}]({folder.name}/{path.name})"
        for path in _files(folder, ".png")
    ]
    files = [f"[{path.name}]({folder.name}/{path.name})" for path in _files(folder, *SUFFIXES)]
    comparisons = sum(results.exist(one) for one in folder.iterdir())
    if comparisons:
        files.append(f"[{comparisons} comparisons]({folder.name})")
    return "\n\n".join([text, *figures, f"Numbers: {', '.join(files)}."])


def _with_unique_headings(text: str, folder: str) -> str:
    """Returns a table with its headings one level down, and unique on the page.

    Tables of several folders can have the same title, so each heading names the folder. Where a
    heading is repeated in one table, it names the heading above it, too.
    """
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    lines, above = [], {0: folder}
    for line in text.strip().splitlines():
        if heading := re.fullmatch(r"(#+) (.*)", line):
            level, title = len(heading[1]), heading[2]
            above = {outer: name for outer, name in above.items() if outer < level}
            context = [folder] + [above[max(above)]] * (titles.count(title) > 1)
            line = f"#{heading[1]} {title} ({': '.join(context)})"
            above[level] = title
        lines.append(line)
    return "\n".join(lines)


SUFFIXES = tuple(pathlib.Path(name).suffix for name in results.FILES)


def _files(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


if __name__ == "__main__":
    cli.start(main)
