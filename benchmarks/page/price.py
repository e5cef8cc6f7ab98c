"""SAM at a lower price: each cheap method against tuned plain and tuned SAM at equal cost."""

import math

from benchmarks.common.table import Table
from benchmarks.frontier.records import PLAIN
from benchmarks.page import words
from benchmarks.page.evidence import (
    AVERAGED,
    GOAL,
    SAM,
    SHARE,
    Asked,
    Bed,
    Evidence,
    gaining,
    kept,
    margin,
    one_gradient,
    shortfall,
)

COSTS = (0.25, 0.5, 1.0, 2.0)
CHEAP = 1.25  # gradients per step, at most, of a method in the table


def tables(evidence: Evidence) -> list[Table]:
    """Returns the accuracy at each cost on each bed, and the verdicts on the goal."""
    beds = [bed for bed in evidence.beds if one_gradient(bed)]
    return [*(_by_cost(bed) for bed in beds), _goals(evidence, beds)] if beds else []


def _by_cost(bed: Bed) -> Table:
    methods = [
        method
        for method in bed.curves
        if method in (PLAIN, AVERAGED, SAM) or bed.gradients_per_step(method) <= CHEAP
    ]
    costs = [cost for cost in COSTS if cost in bed.budgets]
    rows = []
    for method in methods:
        row = [method, f"{bed.gradients_per_step(method):.2f}"]
        seconds = bed.step_seconds(method)
        for cost in costs:
            cell = bed.cell(method, cost)
            accuracy = words.unsigned(cell.accuracy.scaled(100))
            row.append(f"{accuracy}, {cell.steps * seconds:.2g} s")
        rows.append(row)
    return Table(
        f"Cheaper than SAM on {bed.label}",
        ["method", "gradients per step", *(f"cost {cost:g}" for cost in costs)],
        rows,
        "Test accuracy in % with its 95% interval, and seconds of training, by the number of "
        f"gradients in units of {bed.found['dataset']['reference_gradients']}. Each method was "
        "tuned at each cost. Seconds: the steps times the time of a step, which was measured side "
        "by side with those of the other methods.",
    )


def _goals(evidence: Evidence, beds: list[Bed]) -> Table:
    rows = []
    for bed in beds:
        for method in one_gradient(bed):
            verdict = evidence.verdicts[Asked(GOAL, bed.folder, method)]
            cost, behind = shortfall(bed, method)
            share = kept(bed, method)
            rows.append(
                [
                    bed.label,
                    method,
                    f"{words.signed(behind)} at cost {cost:g}",
                    f"{share:.0%}" if math.isfinite(share) else "-",
                    "yes" if _in_the_means(bed, method) else "no",
                    words.REACHED[verdict.verdict]
                    + (f" ({verdict.reason})" if verdict.reason else ""),
                ]
            )
    return Table(
        "The goal: SAM at the price of one gradient",
        [
            "bed",
            "method",
            "minus SAM, where it is least",
            "share of SAM's gain",
            "goal in the means",
            "goal",
        ],
        rows,
        "Differences of test accuracy in points at equal cost, with 95% intervals.\n"
        f"goal: at no cost below SAM by more than {SHARE:.0%} of SAM's gain over the plain "
        "optimizer at this cost, not below SAM at all where SAM does not gain, and above the plain "
        "optimizer at each cost at which the interval of SAM minus plain is above zero. It is "
        "reached if all of this is shown, missed if a part is refuted, and otherwise undecided, "
        "corrected over all verdicts of this page.\n"
        "share of SAM's gain: the gains over the plain optimizer, summed over the costs at which "
        "the interval of SAM's gain is above zero; “-” without such a cost.\n"
        "goal in the means: whether the mean accuracies alone fulfill it.",
        "lllrll",
    )


def _in_the_means(bed: Bed, method: str) -> bool:
    near = all(bed.at(cost, method, SAM).mean >= -margin(bed, cost) for cost in bed.budgets)
    return near and all(bed.at(cost, method).mean > 0 for cost in gaining(bed))
