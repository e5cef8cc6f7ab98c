"""The claims of the papers: verdict, effect, and the scale that it was measured at."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common.statistics import questions
from benchmarks.common.statistics.estimates import number
from benchmarks.common.table import Table
from benchmarks.frontier.records import PLAIN
from benchmarks.page import words
from benchmarks.page.evidence import (
    CLAIM,
    SAM,
    SHARE,
    Asked,
    Evidence,
    matching,
)

MISSING = "runs are missing"
# For claims on accuracy: what the frontier compares, with every method tuned at every cost.
TUNED = {
    "below_sgd": [(SAM, PLAIN), ("penalized_gradient", PLAIN)],
    "below_sam": [("penalized_gradient", SAM)],
    "cheap_ascent": [("sam:ascent_fraction=0.1", SAM)],
    "rare_ascent": [("sam:every=5", SAM)],
}
NOISY = "_noisy"  # how the names of claims with wrong labels end


def tables(evidence: Evidence) -> list[Table]:
    """Returns the table of the claims with a judgment, and that of the claims without."""
    rows: list[list[str]] = []
    missing: dict[str, list[str]] = {}
    for name in dict.fromkeys(one.name for one in evidence.verdicts if one.kind == CLAIM):
        first = True
        for folder, record in evidence.claims.items():
            claim = record["claims"].get(name)
            if claim is None:
                continue
            verdict = evidence.verdicts[Asked(CLAIM, folder, name)]
            setting = record["setting"]
            scale = f"{setting['data']}, {setting['model']}"
            if MISSING in verdict.reason and verdict.verdict == questions.NONE:
                missing.setdefault(_statement(claim), []).append(scale)
                continue
            word = words.CLAIMS[verdict.verdict]
            effect = _deciding(claim["effects"], verdict.verdict)
            mark = " †" if claim.get("caveat") else ""
            rows.append(
                [
                    _statement(claim) + mark if first else "",
                    word + (f" ({verdict.reason})" if verdict.reason else ""),
                    f"{effect['quantity']}: {_value(effect)}",
                    f"{scale}, {setting['train_examples']} training examples, "
                    f"{effect['seeds']} seeds",
                    _tuned(evidence, name, setting),
                ]
            )
            first = False
    caveats = dict.fromkeys(
        claim["caveat"]
        for record in evidence.claims.values()
        for claim in record["claims"].values()
        if claim.get("caveat")
    )
    judged = Table(
        "Claims, verdicts, and the scale that they were tested at",
        ("claim (source)", "verdict", "effect (95% interval)", "scale", "tuned at equal compute"),
        rows,
        "\n".join(
            [
                "A claim is reproduced if all of its predictions are shown to be true, not "
                "reproduced if at least one is shown to be false, and otherwise inconclusive. The "
                "effect is the one that decides it, or that is the weakest.",
                *(f"† {caveat}" for caveat in caveats),
                "tuned at equal compute: the same comparison on the frontier, in points with 95% "
                "intervals, each method at its best cost. A claim that was reproduced against an "
                "optimizer with fixed hyperparameters stands only as far as this column says.",
                f"Margins of equivalence are {SHARE:.0%} of SAM's gain over the plain optimizer of "
                "the same runs.",
            ]
        ),
        "lllll",
    )
    open_ = Table(
        "Claims that are not judged",
        ("claim (source)", "not judged, because runs are missing, on"),
        [[statement, "; ".join(scales)] for statement, scales in missing.items()],
        "`python -m benchmarks.claims --resume` makes the missing runs.",
        "ll",
    )
    return [table for table in (judged, open_) if table.rows]


def _statement(claim: dict[str, Any]) -> str:
    return f"{claim['statement']} ({claim['source']})"


def _deciding(effects: Sequence[dict[str, Any]], verdict: str) -> dict[str, Any]:
    """The effect that decides a claim, or the weakest one if none does."""
    predicted = [one for one in effects if number(one["p_for"]) >= 0]
    if verdict == questions.AGAINST:
        return min(predicted, key=lambda one: number(one["p_against"]))
    return max(predicted, key=lambda one: number(one["p_for"]))


def _value(effect: dict[str, Any]) -> str:
    low, mean, high = (round(number(effect[name]), 9) for name in ("low", "mean", "high"))
    if not math.isfinite(mean):
        return "-"
    interval = f" ({low:+.2g} to {high:+.2g})" if math.isfinite(low) else ""
    return f"{mean:+.2g}{interval}, predicted {effect['prediction']}"


def _tuned(evidence: Evidence, name: str, setting: dict[str, Any]) -> str:
    pairs = TUNED.get(name.removesuffix(NOISY), [])
    bed = matching(evidence, setting, noisy=name.endswith(NOISY))
    if bed is None:
        return ""
    return "; ".join(
        f"{method} minus {other}: {words.signed(bed.gain(method, other))}"
        for method, other in pairs
        if {method, other} <= bed.curves.keys()
    )
