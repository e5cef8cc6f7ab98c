"""The beds at a glance, and what tuning chose."""

from benchmarks.common.table import Table
from benchmarks.frontier.records import PLAIN
from benchmarks.page import words
from benchmarks.page.evidence import AVERAGED, GAIN, SAM, Asked, Bed, Evidence


def tables(evidence: Evidence) -> list[Table]:
    """Returns the table of gains, and that of the hyperparameters; none without a frontier."""
    return [_gains(evidence), _chosen(evidence)] if evidence.beds else []


def _gains(evidence: Evidence) -> Table:
    methods = list(
        dict.fromkeys(method for bed in evidence.beds for method in bed.curves if method != PLAIN)
    )
    rows = [
        [
            "plain: best, %",
            *(
                f"{words.unsigned(bed.best(PLAIN).accuracy.scaled(100))} at cost "
                f"{bed.best(PLAIN).budget:g}"
                for bed in evidence.beds
            ),
        ],
        *([method, *(_gain(evidence, bed, method) for bed in evidence.beds)] for method in methods),
    ]
    return Table(
        "Gain over the tuned plain optimizer",
        ["method", *(bed.label for bed in evidence.beds)],
        rows,
        "In points, each method at its best cost, which is behind @.\n"
        "bold: better or worse than the plain optimizer, corrected over all verdicts of this page. "
        "All others are undecided.",
        "l" * (1 + len(evidence.beds)),
    )


def _gain(evidence: Evidence, bed: Bed, method: str) -> str:
    if method not in bed.curves:
        return ""
    verdict = words.COMPARED[evidence.verdicts[Asked(GAIN, bed.folder, method)].verdict]
    text = f"{words.signed(bed.gain(method))} @ {bed.best(method).budget:g}"
    return f"**{text}, {verdict}**" if verdict in ("better", "worse") else text


def _chosen(evidence: Evidence) -> Table:
    beds = evidence.beds
    methods = list(dict.fromkeys(method for bed in beds for method in bed.curves))
    rows = [
        [
            method,
            *(
                ", ".join(f"{k} {v:.2g}" for k, v in bed.best(method).tuned.point.items())
                if method in bed.curves
                else ""
                for bed in beds
            ),
        ]
        for method in methods
        if method not in (PLAIN, AVERAGED) or SAM in methods
    ]
    return Table(
        "What tuning chose at the best cost",
        ["method", *(bed.label for bed in beds)],
        rows,
        "The table of each bed below has the choice at every cost.",
        "l" * (1 + len(beds)),
    )
