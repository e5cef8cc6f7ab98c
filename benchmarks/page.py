"""Writes benchmarks/results/RESULTS.md: the tables and figures of all results that are kept there.

    python -m benchmarks.claims --out benchmarks/results/claims-digits
    python -m benchmarks.page

Every folder of `benchmarks/results` is one command's, which wrote the table.md and figures that
are shown, and the JSON with the command, the versions and every single number behind them.
"""

import pathlib
import sys

RESULTS = pathlib.Path(__file__).parent / "results"
HEAD = """# Results

Written by `python -m benchmarks.page` from the folders beside it. Above each table stands the
command that made it; versions, configuration and every single number are in the folder's JSON.
"""


def main(folder: pathlib.Path = RESULTS) -> int:
    """Writes the page."""
    parts = [HEAD]
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


if __name__ == "__main__":
    sys.exit(main())
