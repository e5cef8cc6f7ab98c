"""The table of claims, for the terminal and for table.md."""

from collections.abc import Iterator
from typing import Any

from benchmarks.claims.verdict import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, VERDICTS
from benchmarks.common.statistics.estimates import number, written
from benchmarks.common.table import Cell, Table

COLORS = {REPRODUCED: "green", NOT_REPRODUCED: "red", INCONCLUSIVE: "yellow"}
CAPTION = (  # a list in Markdown
    "A claim predicts that each of its effects is above zero. Mean and 95% confidence interval "
    "(Student's t) over the seeds, paired where two methods are compared.",
    "A claim is reproduced if all of its intervals are above zero, not reproduced if at least one "
    "of them is below zero, and otherwise inconclusive.",
    "Accuracies are those on the test set. Hyperparameters were chosen on the validation split.",
    "The number of seeds counts finite values. A run that diverged has none, and a ratio to a "
    "λ_max that float32 rounds to zero is not finite.",
)


def table(claims: dict[str, Any], setting: dict[str, Any]) -> Table:
    """Returns one row per effect.

    Args:
      claims: the claims of claims.json by name.
      setting: what they were tested on.
    """
    verdicts = [claim["verdict"] for claim in claims.values()]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in VERDICTS if one in verdicts)
    return Table(
        title=f"Claims on {setting['data']}, {setting['model']}",
        headings=("claim", "effect", "mean", "95% interval", "seeds", "verdict"),
        rows=[row for claim in claims.values() for row in _rows(claim)],
        caption="\n".join([f"{counts}.", *CAPTION]),
        align="llrrrl",
    )


def _rows(claim: dict[str, Any]) -> Iterator[list[Cell | str]]:
    """A row per effect; the claim and its verdict stand in the first one."""
    statement = f"{claim['statement']} ({claim['source']})"
    verdict = Cell(claim["verdict"], style=COLORS[claim["verdict"]])
    for effect in claim["effects"]:
        mean, low, high = (written(number(effect[name]), ".3g") for name in ("mean", "low", "high"))
        yield [
            statement,
            effect["quantity"],
            mean,
            "-" if low == high == "-" else f"{low} to {high}",
            str(effect["seeds"]),
            verdict,
        ]
        statement, verdict = "", Cell("")
