"""How the results were measured, in half a page; the numbers come from the manifests."""

from collections.abc import Iterable

from benchmarks.common.statistics.questions import LEVEL, MIN_SEEDS, MIN_SEEDS_BELOW_A_POINT
from benchmarks.page.evidence import GOAL_COST, Evidence


def text(evidence: Evidence) -> str:
    """Returns the section without its heading."""
    parts = [_frontier(evidence)] if evidence.beds else []
    parts.append(
        "**Intervals and verdicts.** Intervals of 95% cover other seeds, paired where two methods "
        "are compared, and other test examples: for every test run it is recorded which examples "
        "it classifies correctly. A diverged run counts as wrong on every example. All "
        f"{evidence.count} verdicts of this page are corrected together by Holm's method, so that "
        f"the probability of any false one among them is at most {LEVEL:.0%}. The table.md of a "
        "folder has verdicts that are corrected over fewer. There is no verdict with fewer than "
        f"{MIN_SEEDS} seeds or without any spread between them, and a difference of accuracies "
        f"below one point is undecided with fewer than {MIN_SEEDS_BELOW_A_POINT} seeds. Intervals "
        "in sentences and tables are not corrected. “Undecided” does not mean equal."
    )
    parts.append(
        "**What this does not show.** These are small data sets and networks on a CPU. A method "
        "that does not pay here can pay at another scale."
    )
    return "\n\n".join(parts)


def _frontier(evidence: Evidence) -> str:
    options = [bed.found["configuration"] for bed in evidence.beds]
    tests = [bed.found["dataset"]["test_examples"] for bed in evidence.beds]
    return (
        "**Tuned at equal compute.** Each method, the plain optimizer first, was tuned at each "
        f"cost separately with {_all(one['trials'] for one in options)} quasi-random trials over "
        "learning rate, weight decay and its own radius or penalty. A range whose best trial was "
        f"in its outer tenth grew, with {_all(one['more'] for one in options)} further trials. "
        "Trials were judged on a validation set, with a seed that no test run has. The best trial "
        f"was trained again from {_all(one['seeds'] for one in options)} other seeds on the whole "
        f"training set and tested on {_all(tests)} examples. The cost of a training is its number "
        "of gradient evaluations in units of a reference, "
        f"{_all(one['epochs'] for one in options)} epochs of the plain optimizer. The best cost of "
        "a method was chosen on the validation set, too. Only training labels are wrong where "
        f"labels are wrong. “One gradient per step” means at most {GOAL_COST:g}. Times "
        "compare steps that were measured side by side."
    )


def _all(values: Iterable[object]) -> str:
    """Returns the different values, for example `12`, or `25 or 40`."""
    return " or ".join(str(one) for one in sorted(set(values)))  # type: ignore[type-var]
