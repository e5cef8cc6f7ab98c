"""Writes benchmarks/results/RESULTS.md: the tables and figures of all results that are kept there.

    python -m benchmarks.claims --out benchmarks/results/claims-digits
    python -m benchmarks.page

Every folder of `benchmarks/results` is one command's, which wrote the table.md and figures that
are shown, and the JSON with the command, the versions and every single number behind them.
"""

import json
import pathlib
import sys

from benchmarks.claims.registry import CLAIMS

RESULTS = pathlib.Path(__file__).parents[1] / "results"
HEAD = """# Results

Written by `python -m benchmarks.page` from the folders beside it. Above each table stands the
command that made it; versions, configuration and every single number are in the folder's JSON.
"""


def main(folder: pathlib.Path = RESULTS) -> int:
    """Writes the page."""
    parts = [HEAD, _at_a_glance(folder)]
    for table in sorted(folder.glob("*/table.md")):
        name = table.parent.name
        text = table.read_text(encoding="utf-8").replace("\n# ", "\n### ")
        parts.append("##" + text.removeprefix("#").rstrip())
        parts += [
            f"![{name}: {p.stem}]({name}/{p.name})" for p in sorted(table.parent.glob("*.png"))
        ]
        files = ", ".join(
            f"[{p.name}]({name}/{p.name})" for p in sorted(table.parent.glob("*.json"))
        )
        parts.append(f"Numbers: {files}.")
    page = folder / "RESULTS.md"
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    print(f"Written: {page}")
    return 0


def _at_a_glance(folder: pathlib.Path) -> str:
    """A row a claim, a column for each data set and network on which it was tried."""
    tried = {
        path.parent.name.removeprefix("claims-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/claims.json"))
    }
    if not tried:
        return ""
    columns = [f"{one['setting']['data']}, {one['setting']['model']}" for one in tried.values()]
    verdicts = {
        claim.statement: [t["claims"].get(name, {}).get("verdict", "") for t in tried.values()]
        for name, claim in CLAIMS.items()
    }
    rows = [[statement, *found] for statement, found in verdicts.items() if any(found)]
    lines = [["claim", *columns], ["---"] * (1 + len(columns)), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"## Claims at a glance\n\n{table}"


if __name__ == "__main__":
    sys.exit(main())
