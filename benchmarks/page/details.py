"""The sections below the summary: the tables, figures and files of each recorded folder.

Tables with verdicts are written again, with the verdicts that are corrected over the whole page.
"""

import pathlib
import re
from collections.abc import Iterator

from benchmarks.claims import table as claims_table
from benchmarks.claims.verdict import NAMES
from benchmarks.common import results
from benchmarks.common.table import Table
from benchmarks.frontier import table as frontier_table
from benchmarks.page.evidence import CLAIM, GAIN, Asked, Bed, Evidence


def sections(folder: pathlib.Path, evidence: Evidence) -> Iterator[str]:
    """Yields a section for each folder that has a table.md."""
    beds = {bed.folder: bed for bed in [*evidence.beds, *evidence.ablations]}
    corrected = f"all {evidence.count} verdicts of this page"
    for one in sorted(path.parent for path in folder.glob("*/table.md")):
        text = (one / "table.md").read_text(encoding="utf-8")
        if one.name in beds:
            judged = one.name not in {bed.folder for bed in evidence.ablations}
            text = _frontier(beds[one.name], evidence, corrected if judged else None)
        elif one.name in evidence.claims:
            text = _claims(one.name, evidence)
        yield _section(one, text)


def _frontier(bed: Bed, evidence: Evidence, corrected: str | None) -> str:
    curves = [
        curve._replace(
            verdict=evidence.verdicts.get(Asked(GAIN, bed.folder, method), curve.verdict)
        )
        for method, curve in bed.curves.items()
    ]
    found = bed.found
    shown = frontier_table.tables(curves, found["configuration"], found["dataset"], corrected)
    return _markdown(shown, [found["command"]])


def _claims(name: str, evidence: Evidence) -> str:
    record = evidence.claims[name]
    claims = {}
    for claim, content in record["claims"].items():
        verdict = evidence.verdicts[Asked(CLAIM, name, claim)]
        claims[claim] = content | {
            "verdict": NAMES[verdict.verdict],
            "p": verdict.p,
            "reason": verdict.reason,
        }
    record = record | {"claims": claims, "corrected_over": evidence.count}
    statements = [*claims.values(), *record.get("checks", {}).values()]
    commands = list(dict.fromkeys(one["command"] for one in statements))
    tables = [claims_table.table(record)]
    if record.get("checks"):
        tables.append(claims_table.checks_table(record))
    return _markdown(tables, commands)


def _markdown(tables: list[Table], commands: list[str]) -> str:
    return "\n".join(
        table.markdown(level=min(i + 1, 2), commands=[] if i else commands)
        for i, table in enumerate(tables)
    )


def _section(folder: pathlib.Path, text: str) -> str:
    """Returns the tables and the figures of a folder, with links to its numbers."""
    text = _with_unique_headings(text, folder.name)
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
