"""The ablation of `revisit`: each variant against it at equal cost, without verdicts."""

from collections.abc import Iterator, Sequence

from benchmarks.common.table import Table
from benchmarks.frontier.records import PLAIN
from benchmarks.page import words
from benchmarks.page.evidence import SAM, Bed, Evidence

REVISIT = "revisit"
GROUP, RADIUS = "revisit:group=", "revisit:rho="
CLOSEST = 3  # methods that a sentence names


def tables(evidence: Evidence) -> list[Table]:
    """Returns each method minus `revisit`, at each cost of each bed."""
    beds = evidence.ablations
    if not beds:
        return []
    cells = [(bed, cost) for bed in beds for cost in bed.budgets]
    rows = [
        [
            "revisit: accuracy, %",
            *(words.unsigned(bed.cell(REVISIT, cost).accuracy.scaled(100)) for bed, cost in cells),
        ],
        *(
            [
                method,
                *(
                    words.signed(bed.at(cost, method, REVISIT)) if method in bed.curves else ""
                    for bed, cost in cells
                ),
            ]
            for method in _methods(beds)
            if method != REVISIT
        ),
    ]
    caption = (
        "Test accuracy minus that of `revisit` at equal cost, in points, each tuned.\n"
        "revisit: groups of 4 batches, 2 visits, a tuned radius. group: another number of batches. "
        "rho: a fixed radius; with 0, batches come again without a shift. "
        "direction=other_batch: the second visits climb along the direction of the next batch in "
        "the group. tail=0.5: first half plain on new batches. radius=decaying: in proportion to "
        "the learning rate. epochs=4: groups of 22 batches, 4 visits. first: the first visits "
        "climb, too, along the previous gradient, or they look ahead along the momentum. slide: "
        "half of each batch was in the last batch, and the step climbs along its last gradient."
    )
    headings = ["method", *(f"{bed.label}, cost {cost:g}" for bed, cost in cells)]
    title = "Variants of revisit and further ideas, minus revisit"
    return [Table(title, headings, rows, caption, "l" * len(headings))]


def sentences(evidence: Evidence) -> list[str]:
    """Returns what the table shows, in sentences; none without an ablation."""
    return list(_sentences(evidence.ablations)) if evidence.ablations else []


def _sentences(beds: Sequence[Bed]) -> Iterator[str]:
    others = [one for one in _methods(beds) if one not in (REVISIT, PLAIN, SAM)]
    found = {
        (method, bed.label, cost): bed.at(cost, method, REVISIT)
        for method in others
        for bed in beds
        if method in bed.curves
        for cost in bed.budgets
    }
    above = [key for key, effect in found.items() if effect.interval()[0] > 0]
    below = [key for key, effect in found.items() if effect.interval()[1] < 0]
    yield (
        f"These {len(found)} comparisons are descriptive. They come without verdicts and do not "
        "enter the correction of this page. Without any true difference, about "
        f"{0.05 * len(found):.0f} of the intervals would exclude zero. "
        f"Against `revisit`, {len(above)} are above zero ({_named(above)}), and {len(below)} below "
        f"zero ({_named(below)})."
    )
    for bed in beds:
        yield _summary(bed)


def _summary(bed: Bed) -> str:
    """The mean differences over all costs of a bed, in points."""
    others = [one for one in bed.curves if one not in (REVISIT, PLAIN, SAM)]
    means = {method: _mean(bed, method, REVISIT) for method in others}
    parts = []
    for title, prefix in (("by group size", GROUP), ("by fixed radius", RADIUS)):
        found = {one[len(prefix) :]: means[one] for one in others if one.startswith(prefix)}
        if found:
            parts.append(f"{title}, " + ", ".join(f"{one}: {found[one]:+.1f}" for one in found))
    rest = [one for one in others if not one.startswith((GROUP, RADIUS))]
    rest.sort(key=lambda one: -means[one])
    parts.append(", ".join(f"`{one}` {means[one]:+.1f}" for one in rest))
    text = f"**{bed.label}.** Minus `revisit`, in points, mean over the costs: {'; '.join(parts)}."
    if SAM in bed.curves:
        close = {one: _mean(bed, one, SAM) for one in [PLAIN, REVISIT, *others]}
        best = sorted(close, key=lambda one: -close[one])[:CLOSEST]
        named = ", ".join(f"`{one}` ({close[one]:+.1f})" for one in best)
        text += f" The most accurate with one gradient per step, minus SAM: {named}; "
        text += f"the plain optimizer has {close[PLAIN]:+.1f}."
    return text


def _mean(bed: Bed, method: str, other: str) -> float:
    """The mean difference over all costs, in points."""
    return sum(bed.at(cost, method, other).mean for cost in bed.budgets) / len(bed.budgets)


def _methods(beds: Sequence[Bed]) -> list[str]:
    return list(dict.fromkeys(method for bed in beds for method in bed.curves))


def _named(keys: list[tuple[str, str, float]]) -> str:
    """The methods of some comparisons, each with the number of its comparisons."""
    counts: dict[str, int] = {}
    for method, _, _ in keys:
        counts[method] = counts.get(method, 0) + 1
    return words.listed(
        (f"`{one}`" + (f" {count} times" if count > 1 else "") for one, count in counts.items())
    )
