"""How numbers, verdicts and links are written on the page."""

import math
from collections.abc import Iterable, Sequence

from benchmarks.common.statistics import questions
from benchmarks.common.statistics.confidence import Confidence
from benchmarks.common.statistics.curves import Reach

FRONTIERS = "The frontiers"  # the heading of the section with all beds
COMPARED = {
    questions.FOR: "better",
    questions.AGAINST: "worse",
    questions.UNDECIDED: "undecided",
    questions.NONE: "no verdict",
}
CLAIMS = {
    questions.FOR: "reproduced",
    questions.AGAINST: "not reproduced",
    questions.UNDECIDED: "inconclusive",
    questions.NONE: "no verdict",
}
REACHED = {
    questions.FOR: "reached",
    questions.AGAINST: "missed",
    questions.UNDECIDED: "undecided",
    questions.NONE: "no verdict",
}


def signed(effect: Confidence) -> str:
    """Returns a difference with its 95% interval, for example `+0.6 (-0.5 to +1.7)`."""
    return _with_interval(effect, "+.1f")


def unsigned(value: Confidence) -> str:
    """Returns a value with its 95% interval, for example `93.7 (91.9 to 95.4)`."""
    return _with_interval(value, ".1f")


def cost(reach: Reach, most: float) -> str:
    """Returns a cost with its interval; what exceeds the largest cost is written `> 4`."""

    def text(value: float) -> str:
        return f"> {most:g}" if math.isinf(value) else f"{value:.2f}"

    if math.isnan(reach.cost):
        return "-"
    return f"{text(reach.cost)} ({text(reach.low)} to {text(reach.high)})"


def listed(words: Iterable[str], nothing: str = "none") -> str:
    """Returns words as a list in a sentence; they are separated by semicolons."""
    return "; ".join(words) or nothing


def counted(number: int, of: int, noun: str) -> str:
    """Returns a count in words, for example `2 of 6 beds` or `none of 6 beds`."""
    return f"{number or 'none'} of {of} {noun}"


def links(folders: Sequence[str], file: str = "table.md") -> str:
    """Returns links to a file of each folder; folders of frontiers without their common prefix."""
    return ", ".join(
        f"[{one.removeprefix('frontier-')}]({one}/{file})" for one in dict.fromkeys(folders)
    )


def _with_interval(value: Confidence, form: str) -> str:
    low, high = value.interval()
    if not math.isfinite(low):
        return format(value.mean, form)
    return f"{value.mean:{form}} ({low:{form}} to {high:{form}})"
