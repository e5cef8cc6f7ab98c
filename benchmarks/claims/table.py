"""The table of claims, for the terminal and for table.md."""

from collections.abc import Iterator
from typing import Any

from benchmarks.claims.verdict import (
    INCONCLUSIVE,
    NO_VERDICT,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
)
from benchmarks.common.statistics.estimates import number, written
from benchmarks.common.table import Cell, Table

COLORS = {
    REPRODUCED: "green",
    NOT_REPRODUCED: "red",
    INCONCLUSIVE: "yellow",
    NO_VERDICT: "dim",
}
CAPTION = (  # a list in Markdown
    "A claim predicts that its effects are above a bound or within a margin around zero. What has "
    "no prediction is only shown. Intervals of 95% cover other seeds, paired where two "
    "methods are compared, and for accuracies other test examples, too.",
    "Runs that were recorded without per-example correctness have an upper bound instead of the "
    "variance due to the test examples, so that their intervals are rather too long.",
    "A claim is reproduced if all of its predictions are shown to be true, not reproduced if at "
    "least one is shown to be false, and otherwise inconclusive. There is no verdict with fewer "
    "than three seeds, without any spread between them, or without the runs. A difference of "
    "accuracies with a mean below one point is undecided with fewer than ten seeds.",
    "p is the two-sided p-value of the verdict after Holm's correction over {count} verdicts, so "
    "that the probability of any false one among them is at most 5%.",
    "A seed that diverged counts as the worst outcome. Hyperparameters were chosen on the "
    "validation split, with {tuning}.",
)


def table(record: dict[str, Any]) -> Table:
    """Returns one row per effect.

    Args:
      record: the content of claims.json.
    """
    claims, setting = record["claims"], record["setting"]
    verdicts = [claim["verdict"] for claim in claims.values()]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in VERDICTS if one in verdicts)
    first = setting.get("first_tuning_seed", 0)
    tuning = f"seeds from {first}" if first else "seeds that the test runs have, too"
    caption = "\n".join([f"{counts}.", *CAPTION])
    return Table(
        title=f"Claims on {setting['data']}, {setting['model']}",
        headings=("claim", "effect", "predicted", "mean", "95% interval", "seeds", "verdict", "p"),
        rows=[row for claim in claims.values() for row in _rows(claim)],
        caption=caption.format(count=record["corrected_over"], tuning=tuning),
        align="lllrrrlr",
    )


def checks_table(record: dict[str, Any]) -> Table:
    """Returns what must be true by construction, one row per check."""
    setting = record["setting"]
    return Table(
        title=f"Checks on {setting['data']}, {setting['model']}",
        headings=("statement", "quantity", "condition", "value", "holds"),
        rows=[row for check in record["checks"].values() for row in _check_rows(check)],
        caption="These statements hold by construction, so that they are not counted as claims.",
        align="lllrl",
    )


def _rows(claim: dict[str, Any]) -> Iterator[list[Cell | str]]:
    """A row per effect; the claim and its verdict stand in the first one."""
    statement = f"{claim['statement']} ({claim['source']})"
    reason = f" ({claim['reason']})" if claim["reason"] else ""
    verdict = Cell(claim["verdict"] + reason, style=COLORS[claim["verdict"]])
    p = written(number(claim["p"]), ".2g")
    for effect in claim["effects"]:
        mean, low, high = (
            written(round(number(effect[name]), 9), ".3g") for name in ("mean", "low", "high")
        )
        yield [
            statement,
            effect["quantity"],
            effect["prediction"],
            mean,
            "-" if low == high == "-" else f"{low} to {high}",
            str(effect["seeds"]),
            verdict,
            p,
        ]
        statement, verdict, p = "", Cell(""), ""


def _check_rows(check: dict[str, Any]) -> Iterator[list[Cell | str]]:
    statement = f"{check['statement']} ({check['source']})"
    for one in check["checks"]:
        holds = Cell("yes", style="green") if one["holds"] else Cell("NO", style="red")
        value = written(number(one["value"]), ".3g")
        yield [statement, one["quantity"], one["condition"], value, holds]
        statement = ""
