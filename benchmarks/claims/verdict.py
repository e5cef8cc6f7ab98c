"""What a claim predicts, and the verdict on it: reproduced, not reproduced or inconclusive.

A claim predicts that each of its effects is above a bound, or within a margin around zero. An
effect is measured once per seed, paired where it compares two methods. Its interval covers other
seeds and, if it is an accuracy, other test examples. The claim is

- not reproduced if at least one of its effects is shown to be on the wrong side,
- reproduced if all of its effects are shown to be on the right side,
- without a verdict if the data could not show an effect: with fewer than three seeds, no spread
  between them, a quick trial, or missing runs, and
- inconclusive otherwise. A difference of accuracies below one percentage point decides nothing with
  fewer than ten seeds.

The verdicts of a page are corrected together by Holm's method, so that the probability of any false
verdict on the page is at most 5%. `statistics/questions.py` has the tests.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from numpy.typing import ArrayLike

from benchmarks.common.statistics import questions
from benchmarks.common.statistics.confidence import Confidence, of_seeds
from benchmarks.common.statistics.questions import Question

VERDICTS = REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NO_VERDICT = (
    "reproduced",
    "not reproduced",
    "inconclusive",
    "no verdict",
)
NAMES = {
    questions.FOR: REPRODUCED,
    questions.AGAINST: NOT_REPRODUCED,
    questions.UNDECIDED: INCONCLUSIVE,
    questions.NONE: NO_VERDICT,
}


class Effect(NamedTuple):
    """A quantity that a claim makes a prediction about.

    Attributes:
      quantity: what is measured, in words, with the unit.
      prediction: what the claim predicts, for example `> 0` or `within ±0.2`; empty if the quantity
        is only shown.
      mean: the mean over the seeds; NaN if the runs are missing.
      low: the lower end of the 95% interval; NaN with fewer than two seeds.
      high: the upper end of the interval; NaN with fewer than two seeds.
      seeds: the number of seeds.
      p_for: the p-value of the prediction; NaN if the quantity is only shown.
      p_against: the p-value of the opposite.
      reason: why the data cannot show the prediction; empty if they can.
    """

    quantity: str
    prediction: str
    mean: float
    low: float
    high: float
    seeds: int
    p_for: float = math.nan
    p_against: float = math.nan
    reason: str = ""


class Check(NamedTuple):
    """A statement that holds by construction, which no experiment needs to decide.

    Attributes:
      quantity: what is computed, in words, with the unit.
      value: its value.
      condition: what must be true of the value, for example `≤ 0.01`.
      holds: whether it is.
    """

    quantity: str
    value: float
    condition: str
    holds: bool


def above(quantity: str, effect: Confidence | ArrayLike, bound: float = 0.0) -> Effect:
    """Returns an effect that is predicted to be above a bound.

    Args:
      quantity: what is measured.
      effect: its confidence distribution, or one value per seed.
      bound: the bound.
    """
    found = _confidence(effect)
    return _effect(quantity, f"> {bound:g}", found, questions.superiority(found, bound))


def within(quantity: str, effect: Confidence | ArrayLike, margin: float, share: str) -> Effect:
    """Returns an effect that is predicted to be equal to zero within a margin.

    Args:
      quantity: what is measured.
      effect: its confidence distribution, or one value per seed.
      margin: the largest difference that counts as equal.
      share: what the margin is a share of, for example `25% of SAM's gain`.
    """
    found = _confidence(effect)
    prediction = f"within ±{margin:.2g} ({share})" if margin > 0 else f"within {share}"
    return _effect(quantity, prediction, found, questions.equivalence(found, margin))


def shown(quantity: str, effect: Confidence | ArrayLike) -> Effect:
    """Returns a quantity that is shown beside the effects of a claim and does not decide it."""
    found = _confidence(effect)
    return Effect(quantity, "", found.mean, *found.interval(), found.seeds)


def missing(quantity: str, reason: str) -> Effect:
    """Returns an effect whose runs are missing."""
    nan = math.nan
    return Effect(quantity, "", nan, nan, nan, 0, 1.0, 1.0, reason)


def question(effects: Sequence[Effect], quick: bool) -> Question:
    """Returns the question whether all predictions of a claim are true."""
    if quick:
        return Question(1.0, 1.0, "a quick trial")
    return questions.all_of(
        [Question(one.p_for, one.p_against, one.reason) for one in effects if one.p_for >= 0]
    )


def _confidence(effect: Confidence | ArrayLike) -> Confidence:
    return effect if isinstance(effect, Confidence) else of_seeds(effect)


def _effect(quantity: str, prediction: str, found: Confidence, asked: Question) -> Effect:
    return Effect(quantity, prediction, found.mean, *found.interval(), found.seeds)._replace(
        p_for=asked.p_for, p_against=asked.p_against, reason=asked.reason
    )
