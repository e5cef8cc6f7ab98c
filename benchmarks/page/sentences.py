"""The sentences at the top of the page. Every number and every verdict comes from the evidence."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.common.statistics import questions
from benchmarks.common.statistics.confidence import Confidence
from benchmarks.common.statistics.estimates import number
from benchmarks.frontier.records import PLAIN
from benchmarks.page import words
from benchmarks.page.evidence import (
    AVERAGED,
    CLAIM,
    GAIN,
    GOAL,
    SAM,
    Asked,
    Bed,
    Evidence,
    difference,
    gaining,
    kept,
    matching,
    one_gradient,
    shortfall,
)

FIXED = "below_sgd_noisy"  # the claim whose plain optimizer had fixed hyperparameters
OWN = "flatreg"  # the source of the claims of this library
PART_OF_BATCH = "sam:ascent_fraction=0.1"
LISTED = 3  # Of more beds, a sentence names those with the least and the largest value only.


def sentences(evidence: Evidence) -> list[str]:
    """Returns the sentences, each with a link to the files that its numbers come from.

    A sentence about more than `LISTED` beds has the extremes. The tables of the page have all beds.
    """
    made = [
        _plain(evidence),
        _on(SAM, _sam, evidence),
        _on(SAM, _price, evidence),
        _on(AVERAGED, _averaging, evidence),
        _one_gradient(evidence),
        _on(SAM, _others, evidence),
        _on(SAM, _radius, evidence),
        _flatness(evidence),
        _earlier(evidence),
        _claims(evidence),
    ]
    return [one for one in made if one]


def standing(evidence: Evidence, method: str) -> str:
    """Returns on which beds a method is better or worse than the tuned plain optimizer."""
    beds = _with(evidence, method)
    of: dict[str, list[str]] = {word: [] for word in words.COMPARED.values()}
    for bed in beds:
        verdict = evidence.verdicts[Asked(GAIN, bed.folder, method)].verdict
        of[words.COMPARED[verdict]].append(bed.label)
    parts = [f"better on {words.counted(len(of['better']), len(beds), 'beds')}"]
    parts[0] += f" ({words.listed(of['better'])})" if of["better"] else ""
    if of["worse"]:
        parts.append(f"worse on {len(of['worse'])} ({words.listed(of['worse'])})")
    parts += [f"{word} on {len(of[word])}" for word in ("undecided", "no verdict") if of[word]]
    return ", ".join(parts)


def _plain(evidence: Evidence) -> str:
    beds = evidence.beds
    if not beds:
        return ""

    def text(bed: Bed) -> str:
        cell, longest = bed.best(PLAIN), bed.curves[PLAIN].cells[-1]
        best = f"{words.unsigned(cell.accuracy.scaled(100))}% at cost {cell.budget:g}"
        if cell.budget < longest.budget:
            change = words.signed(difference(longest, cell))
            best += f" (and {change} points at cost {longest.budget:g})"
        return best

    worse = [
        bed
        for bed in beds
        if difference(bed.curves[PLAIN].cells[-1], bed.best(PLAIN)).interval()[1] < 0
    ]
    return (
        "**Tune the plain optimizer first, and the length of its training.** With its learning "
        "rate and weight decay tuned at each cost, its best accuracy is "
        f"{_each(beds, text, lambda bed: bed.best(PLAIN).accuracy.mean)}. "
        "The longest training is less accurate than "
        f"the best one, with an interval below zero, on {_count(worse, beds)}"
        f"{': ' if worse else ''}{words.listed((bed.label for bed in worse), '')}. "
        f"{_source(beds, evidence)}"
    )


def _sam(evidence: Evidence, beds: list[Bed]) -> str:
    better = [
        bed
        for bed in beds
        if evidence.verdicts[Asked(GAIN, bed.folder, SAM)].verdict == questions.FOR
    ]
    if not better:
        head = "SAM is not shown to be better than a tuned plain optimizer"
    elif len(better) < len(beds):
        head = "SAM is shown to be better than a tuned plain optimizer on some beds only"
    else:
        head = "SAM is better than a tuned plain optimizer on every bed"
    return (
        f"**{head}.** Each at its best cost, SAM is {standing(evidence, SAM)}. Its gain in points: "
        f"{_gains(beds, lambda bed: bed.gain(SAM))}. {_source(beds, evidence)}"
    )


def _price(evidence: Evidence, beds: list[Bed]) -> str:
    def at(which: int) -> str:
        """The gains at the least or the largest cost of each bed, with that cost."""
        return _each(
            beds,
            lambda bed: f"{words.signed(bed.at(bed.budgets[which], SAM))} [{bed.budgets[which]:g}]",
            lambda bed: bed.at(bed.budgets[which], SAM).mean,
        )

    cheaper = [bed for bed in beds if _reach(bed, SAM) < _reach(bed, PLAIN)]
    shown = [bed for bed in cheaper if bed.curves[SAM].reach.high < bed.curves[PLAIN].reach.low]
    worse = [bed for bed in beds if bed.at(bed.budgets[0], SAM).interval()[1] < 0]
    return (
        "**SAM at equal cost.** With as many gradients, and so half as many steps, SAM minus the "
        "plain optimizer is, in points, with the cost in brackets: at the least cost of each bed "
        f"{at(0)}; at its largest cost {at(-1)}. At the least cost, the interval is below zero on "
        f"{_count(worse, beds)}. SAM reaches the accuracy of the plain optimizer's best at a lower "
        f"cost than the plain optimizer on {_count(cheaper, beds)}, with intervals that do not "
        f"overlap on {_count(shown, beds)}. {_at_equal_steps(beds)}{_source(beds, evidence)}"
    )


def _at_equal_steps(beds: Sequence[Bed]) -> str:
    """On which beds SAM is below what it would be with a radius of zero.

    With this radius, SAM is the plain optimizer with as many steps, at twice the cost.
    """
    largest = {bed.folder: bed.budgets[-1] for bed in beds if bed.budgets[-1] / 2 in bed.budgets}
    short = [
        bed
        for bed in beds
        for cost in [largest.get(bed.folder)]
        if cost and difference(bed.cell(SAM, cost), bed.cell(PLAIN, cost / 2)).interval()[1] < 0
    ]
    if not short:
        return ""
    return (
        "With as many steps, at half of SAM's largest cost, the plain optimizer is above SAM on "
        f"{words.counted(len(short), len(largest), 'beds')} ({words.listed(b.label for b in short)}"
        "). A radius of zero would make them equal, so tuning did not find the best "
        "hyperparameters of SAM there, and a part of its loss is one of tuning. "
    )


def _reach(bed: Bed, method: str) -> float:
    return bed.curves[method].reach.cost


def _averaging(evidence: Evidence, beds: list[Bed]) -> str:
    rivals = [bed for bed in beds if SAM in bed.curves]
    above = [bed for bed in rivals if bed.gain(SAM, AVERAGED).interval()[0] > 0]
    return (
        "**Averaging the weights (`ema`) at the price of plain training** is "
        f"{standing(evidence, AVERAGED)}. Its gain in points: "
        f"{_gains(beds, lambda bed: bed.gain(AVERAGED))}. The interval of SAM's "
        f"accuracy minus that of averaging is above zero on {_count(above, rivals)}. "
        f"{_source(beds, evidence)}"
    )


def _one_gradient(evidence: Evidence) -> str:
    beds = [bed for bed in evidence.beds if one_gradient(bed)]
    if not beds:
        return ""
    closest = closest_to_sam(beds)
    asked = [one for one in evidence.verdicts if one.kind == GOAL]
    verdicts = [words.REACHED[evidence.verdicts[one].verdict] for one in asked]
    counts = ", ".join(
        f"{word} in {verdicts.count(word)}" for word in words.REACHED.values() if word in verdicts
    )
    some = [bed for bed in beds if gaining(bed)]

    def share(bed: Bed) -> float:
        return kept(bed, closest)

    def behind(bed: Bed) -> str:
        cost, points = shortfall(bed, closest)
        return f"{words.signed(points)} at cost {cost:g}"

    shares = _each(some, lambda bed: f"{share(bed):.0%}", share) if some else "on no bed"
    points = _each(beds, behind, lambda bed: shortfall(bed, closest)[1].mean)

    return (
        f"**SAM at the price of one gradient.** `{closest}` comes closest to SAM at equal cost. "
        "Over the costs at which the interval of SAM's gain over the plain optimizer is above "
        f"zero, it keeps this share of SAM's gain: {shares}. It is furthest below SAM by these "
        f"points: {points}. The goal (at no cost below SAM by more than a quarter of "
        f"SAM's gain, and above the plain optimizer wherever SAM is) is {counts} of "
        f"{len(asked)} pairs of method and bed. {_source(beds, evidence)}"
    )


def closest_to_sam(beds: Sequence[Bed]) -> str:
    """Returns the one-gradient method with the least shortfall against SAM, in the mean."""
    methods = set.intersection(*({*one_gradient(bed)} for bed in beds)) or {
        method for bed in beds for method in one_gradient(bed)
    }

    def mean(method: str) -> float:
        return float(
            np.mean([shortfall(bed, method)[1].mean for bed in beds if method in bed.curves])
        )

    return max(sorted(methods), key=mean)


def _others(evidence: Evidence, beds: list[Bed]) -> str:
    shown, above, pairs = [], [], 0
    for bed in beds:
        for method in bed.curves:
            if method in (PLAIN, AVERAGED, SAM):
                continue
            pairs += 1
            if evidence.verdicts[Asked(GAIN, bed.folder, method)].verdict == questions.FOR:
                shown.append(f"`{method}` {words.signed(bed.gain(method))} on {bed.label}")
            if bed.gain(method, SAM).interval()[0] > 0:
                above.append(f"`{method}` {words.signed(bed.gain(method, SAM))} on {bed.label}")
    return (
        f"**Other methods.** Of {pairs} pairs of another method and a bed, these are better than "
        f"the tuned plain optimizer, in points: {words.listed(shown)}. Against SAM, each at its "
        f"best cost, the interval is above zero for: {words.listed(above)} (not corrected for the "
        f"number of comparisons). {_source(beds, evidence)}"
    )


def _radius(evidence: Evidence, beds: list[Bed]) -> str:
    part = [bed for bed in beds if PART_OF_BATCH in bed.curves]
    radii = {bed.folder: [c.tuned.point["rho"] for c in bed.curves[SAM].cells] for bed in beds}
    chosen = [rho for some in radii.values() for rho in some]
    least = [some[0] for some in radii.values()]
    ratios = [_rho(bed, PART_OF_BATCH) / _rho(bed, SAM) for bed in part]
    more = (
        f" With the ascent on a tenth of the batch it is {min(ratios):.1f} to {max(ratios):.1f} "
        "times as large."
        if ratios
        else ""
    )
    return (
        "**Which radius?** The radius ρ that tuning chose for SAM at its best cost is "
        f"{_each(beds, lambda bed: f'{_rho(bed, SAM):.2g}', lambda bed: _rho(bed, SAM))}. "
        "Over all costs it is between "
        f"{min(chosen):.2g} and {max(chosen):.2g}, and at the least cost of each bed between "
        f"{min(least):.2g} and {max(least):.2g}.{more} {_source(beds, evidence)}"
    )


def _rho(bed: Bed, method: str) -> float:
    return bed.best(method).tuned.point["rho"]


def _flatness(evidence: Evidence) -> str:
    beds = [
        bed
        for bed in _with(evidence, SAM)
        if all(math.isfinite(_sharpness(bed, method)) for method in bed.curves)
    ]
    if not beds:
        return ""
    ratios = {bed.label: _sharpness(bed, PLAIN) / _sharpness(bed, SAM) for bed in beds}

    def correlation(bed: Bed) -> float:
        flat = [-_sharpness(bed, method) for method in bed.curves]
        accurate = [bed.best(method).accuracy.mean for method in bed.curves]
        return float(stats.spearmanr(flat, accurate).statistic)

    def ratio(bed: Bed) -> float:
        return ratios[bed.label]

    return (
        "**Flatness and accuracy.** At the best costs, λ_max of the plain "
        "optimizer is this multiple of SAM's: "
        f"{_each(beds, lambda bed: f'{ratio(bed):.1f}', ratio)}. Over the methods, the rank "
        "correlation of flatness (−λ_max) and test accuracy is: "
        f"{_each(beds, lambda bed: f'{correlation(bed):+.2f}', correlation)}. "
        f"{_source(beds, evidence)}"
    )


def _sharpness(bed: Bed, method: str) -> float:
    return bed.best(method).measured["lambda_max"].mean


def _earlier(evidence: Evidence) -> str:
    """The gain under label noise over SGD with fixed hyperparameters, and over a tuned one."""
    pairs, shrunken = [], 0
    for folder, record in evidence.claims.items():
        claim = record["claims"].get(FIXED)
        bed = matching(evidence, record["setting"], noisy=True)
        if claim and bed and SAM in bed.curves:
            effect = claim["effects"][0]
            low, mean, high = (number(effect[name]) for name in ("low", "mean", "high"))
            tuned = bed.gain(SAM)
            shrunken += tuned.interval()[1] < low
            fixed = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            pairs.append((folder, bed, f"{bed.label}: {fixed} becomes {words.signed(tuned)}"))
    if not pairs:
        return ""
    return (
        "**What does not stand against a tuned baseline.** SAM's gains under label noise over SGD "
        f"with fixed hyperparameters and as many epochs do not stand on {shrunken} of "
        f"{len(pairs)} beds, where the interval over a tuned plain optimizer is below that gain's. "
        f"In points: {words.listed(text for *_, text in pairs)}. "
        f"({words.links([one for one, *_ in pairs], 'claims.json')}, "
        f"{words.links([bed.folder for _, bed, _ in pairs])})"
    )


def _claims(evidence: Evidence) -> str:
    asked = {one: v for one, v in evidence.verdicts.items() if one.kind == CLAIM}
    parts = []
    for own in (False, True):
        some = {one: v for one, v in asked.items() if (_source_of(evidence, one) == OWN) == own}
        if some:
            parts.append(_outcomes(some, "flatreg" if own else "the papers"))
    if not parts:
        return ""
    return (
        f"**Claims with a verdict.** {' '.join(parts)} Where runs are missing, a claim is not "
        f"judged. ({words.links([one.folder for one in asked], 'claims.json')})"
    )


def _outcomes(some: dict[Asked, questions.Verdict], who: str) -> str:
    counts = dict.fromkeys(words.CLAIMS.values(), 0)
    for verdict in some.values():
        counts[words.CLAIMS[verdict.verdict]] += 1
    refuted = [
        f"`{one.name}` in {one.folder}"
        for one, verdict in some.items()
        if verdict.verdict == questions.AGAINST
    ]
    text = ", ".join(f"{count} {word}" for word, count in counts.items())
    return (
        f"Of {len(some)} pairs of a claim of {who} and a data set and network: {text} (not "
        f"reproduced: {words.listed(refuted)})."
    )


def _source_of(evidence: Evidence, one: Asked) -> str:
    return str(evidence.claims[one.folder]["claims"][one.name]["source"])


def _on(method: str, sentence: Callable[[Evidence, list[Bed]], str], evidence: Evidence) -> str:
    """Returns a sentence on the beds with a method; an empty one without such a bed."""
    beds = _with(evidence, method)
    return sentence(evidence, beds) if beds else ""


def _with(evidence: Evidence, method: str) -> list[Bed]:
    return [bed for bed in evidence.beds if method in bed.curves]


def _each(beds: Sequence[Bed], text: Callable[[Bed], str], value: Callable[[Bed], float]) -> str:
    """Returns the text of each bed, or of the beds with the least and the largest value."""
    named = [f"{text(bed)} on {bed.label}" for bed in sorted(beds, key=value)]
    if len(named) <= LISTED:
        return words.listed(named)
    return f"from {named[0]} to {named[-1]}"


def _gains(beds: Sequence[Bed], gain: Callable[[Bed], Confidence]) -> str:
    return _each(beds, lambda bed: words.signed(gain(bed)), lambda bed: gain(bed).mean)


def _count(some: Sequence[Bed], of: Sequence[Bed]) -> str:
    return words.counted(len(some), len(of), "beds")


def _source(beds: Sequence[Bed], evidence: Evidence) -> str:
    """Links to the beds. If these are all, and many, it is one link to the list of all beds."""
    if LISTED < len(beds) == len(evidence.beds):
        return f"([all beds](#{words.FRONTIERS.lower().replace(' ', '-')}))"
    return f"({words.links([bed.folder for bed in beds])})"
