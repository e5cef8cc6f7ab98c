"""Questions about effects, and verdicts that hold together.

A question has a p-value for its statement and one against it. The verdict on a question is *for* or
*against* if the smaller of the two, doubled because either could have been the smaller one, is at
most 5% after Holm's correction over all questions that are asked together. Otherwise the question
is undecided. So is every question about a difference of accuracies below one percentage point that
has fewer than ten seeds. It still counts in the correction, because the data decide whether a
difference is that small. A verdict is not given at all without evidence that could decide: with
fewer than three seeds, if no value differs between seeds, and in a quick trial.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.common.statistics.confidence import Confidence

FOR, AGAINST, UNDECIDED, NONE = "for", "against", "undecided", "no verdict"
MIN_SEEDS = 3
MIN_SEEDS_BELOW_A_POINT = 10
LEVEL = 0.05


class Question(NamedTuple):
    """A statement that is tested.

    Attributes:
      p_for: the p-value of the statement: how likely such data are if it is false.
      p_against: the p-value of its opposite.
      reason: why the data cannot show it; empty if they can.
    """

    p_for: float
    p_against: float
    reason: str = ""


class Verdict(NamedTuple):
    """The answer to a question.

    Attributes:
      verdict: `for`, `against`, `undecided` or `no verdict`.
      p: the two-sided p-value after Holm's correction; NaN without a verdict.
      reason: why a verdict cannot be given; empty if it can.
    """

    verdict: str
    p: float
    reason: str = ""


def superiority(effect: Confidence, bound: float = 0.0, *, quick: bool = False) -> Question:
    """Asks whether an effect is above a bound."""
    return _checked(effect, quick, Question(effect.below(bound), effect.above(bound)))


def equivalence(effect: Confidence, margin: float, *, quick: bool = False) -> Question:
    """Asks whether an effect lies within a margin around zero, by two one-sided tests.

    Args:
      effect: the effect.
      margin: the largest difference that counts as equal, in the unit of the effect: a stated share
        of a gain that matters.
      quick: whether the runs are only a trial, which cannot decide anything.
    """
    if not margin > 0:  # for example a share of a gain that is negative or NaN
        return Question(1.0, 1.0, "there is no gain that a margin could be a share of")
    inside = max(effect.below(-margin), effect.above(margin))
    # It is outside on one of two sides, so that the smaller p-value is doubled.
    outside = min(1.0, 2 * min(effect.above(-margin), effect.below(margin)))
    return _checked(effect, quick, Question(inside, outside))


def all_of(questions: Sequence[Question]) -> Question:
    """Asks whether several statements are true at the same time.

    Each of them must be shown, so that the largest p-value counts, which is 1 if the data cannot
    decide one of them. One that is shown to be false refutes them all; as it could have been any of
    them, its p-value is multiplied by their number.
    """
    return Question(
        max(one.p_for for one in questions),
        min(1.0, len(questions) * min(one.p_against for one in questions)),
        "; ".join(dict.fromkeys(one.reason for one in questions if one.reason)),
    )


def verdicts(questions: Sequence[Question], level: float = LEVEL) -> list[Verdict]:
    """Returns the verdicts on questions that are asked together.

    The probability that any statement is accepted or rejected wrongly is at most `level`. Questions
    that the data can neither confirm nor refute are not counted in the correction. A statement that
    they cannot confirm may still be refuted, if it says several things.

    Args:
      questions: all questions of one page.
      level: the probability of any false verdict.
    """
    asked = [not one.reason or one.p_against < 1 for one in questions]
    p_values = [
        min(1.0, 2 * min(one.p_for, one.p_against))
        for one, is_asked in zip(questions, asked, strict=True)
        if is_asked
    ]
    adjusted = iter(holm(p_values))
    found = []
    for one, is_asked in zip(questions, asked, strict=True):
        p = float(next(adjusted)) if is_asked else math.nan
        if p <= level:
            found.append(Verdict(FOR if one.p_for < one.p_against else AGAINST, p))
        elif one.reason:
            found.append(Verdict(NONE, math.nan, one.reason))
        else:
            found.append(Verdict(UNDECIDED, p))
    return found


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Returns p-values after Holm's step-down correction, in the order of the given ones.

    References:
      Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, stepped)
    return adjusted


def _checked(effect: Confidence, quick: bool, question: Question) -> Question:
    """The question, with the reason if the data cannot decide it."""
    if quick:
        reason = "a quick trial"
    elif effect.seeds < MIN_SEEDS:
        reason = f"{effect.seeds} seeds, of which at least {MIN_SEEDS} are needed"
    elif not math.isfinite(effect.mean) or not math.isfinite(effect.error):
        reason = "a value that is not finite"
    elif effect.error == 0:
        reason = "no spread between seeds"
    elif effect.seeds < MIN_SEEDS_BELOW_A_POINT and abs(effect.mean) < effect.point:
        return Question(1.0, 1.0)
    else:
        return question
    return Question(1.0, 1.0, reason)
