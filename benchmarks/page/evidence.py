"""What the recorded results show: every bed of the frontier, every claim, and all verdicts.

A bed is a data set, a network and a share of wrong labels: one folder of `benchmarks.frontier`. All
verdicts of the page are corrected together by Holm's method:

- each claim of each folder of `benchmarks.claims`,
- on each bed, whether each method is better than the tuned plain optimizer, and
- on each bed, whether each method with one gradient per step reaches the goal of `goal`.

Everything that is chosen, such as the best cost of a method, is chosen on the validation set.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.claims import verdict as claim_verdicts
from benchmarks.claims.verdict import Effect
from benchmarks.common import results
from benchmarks.common.statistics import confidence, questions
from benchmarks.common.statistics.confidence import Confidence
from benchmarks.common.statistics.estimates import number
from benchmarks.common.statistics.questions import Question, Verdict
from benchmarks.frontier.options import common_ranges
from benchmarks.frontier.records import PLAIN, key_of
from benchmarks.frontier.summary import Cell, Curve, summarize
from benchmarks.frontier.trials.contenders import KNOWN

SAM, AVERAGED = "sam", "ema"  # contenders, beside the plain optimizer
CLAIMS_FILE = "claims.json"
ABLATION = "frontier-ablation-"  # begins the name of a folder without verdicts
SHARE = 0.25  # of SAM's gain: how far below SAM a cheaper method may be
GOAL_COST = 1.05  # gradients per step, at most, of a method that the goal is asked of
CLAIM, GAIN, GOAL = "claim", "gain", "goal"


class Asked(NamedTuple):
    """What a verdict of the page is about.

    Attributes:
      kind: `claim`, `gain` or `goal`.
      folder: the name of the folder of the results.
      name: the claim or the method.
    """

    kind: str
    folder: str
    name: str


class Bed(NamedTuple):
    """The results of one frontier.

    Attributes:
      folder: the name of the folder.
      found: the results, as `results.read` returns them.
      curves: the curve of each method, of which the plain optimizer is the first.
    """

    folder: str
    found: results.Results
    curves: dict[str, Curve]

    @property
    def label(self) -> str:
        """The data set, the network and the share of wrong labels, in words."""
        options = self.found["configuration"]
        noise = options["label_noise"]
        text = f"{options['data']}, {options['model']}"
        return f"{text}, {noise:.0%} wrong labels" if noise else text

    @property
    def budgets(self) -> list[float]:
        """The costs, in units of the reference number of gradients."""
        return list(self.found["configuration"]["budgets"])

    def best(self, method: str) -> Cell:
        """Returns the method at its best cost."""
        return self.curves[method].cells[self.curves[method].best]

    def cell(self, method: str, cost: float) -> Cell:
        """Returns the method at a cost."""
        return self.curves[method].cells[self.budgets.index(cost)]

    def at(self, cost: float, method: str, other: str = PLAIN) -> Confidence:
        """Returns the difference of two methods at the same cost, in points."""
        return difference(self.cell(method, cost), self.cell(other, cost))

    def gain(self, method: str, other: str = PLAIN) -> Confidence:
        """Returns the difference of two methods at their best costs, in points."""
        return difference(self.best(method), self.best(other))

    def gradients_per_step(self, method: str) -> float:
        """Returns the gradients per step of a method in its longest training."""
        cell = self.curves[method].cells[-1]
        return cell.gradients / cell.steps

    def step_seconds(self, method: str) -> float:
        """Returns the seconds of a training step, timed side by side with the other methods."""
        seconds: float = self.found["step_seconds"][method]
        return seconds


class Evidence(NamedTuple):
    """Everything that the page reports about accuracy.

    Attributes:
      beds: the frontiers, in the order of their labels.
      claims: the content of claims.json of each folder of claims.
      verdicts: the verdicts, corrected together.
      count: how many verdicts the correction counts.
      ablations: the frontiers that compare variants of a method. No verdicts are asked of them.
    """

    beds: list[Bed]
    claims: dict[str, dict[str, Any]]
    verdicts: dict[Asked, Verdict]
    count: int  # type: ignore[assignment]  # it hides tuple.count
    ablations: Sequence[Bed] = ()


def read(folder: pathlib.Path) -> Evidence:
    """Returns the evidence in a folder that holds one folder per command."""
    manifests = sorted(folder.glob(f"frontier-*/{results.MANIFEST}"))
    found = [_bed(file.parent) for file in manifests if (file.parent / results.RUNS).exists()]
    found.sort(key=lambda bed: (bed.found["configuration"]["data"], bed.label))
    beds = [bed for bed in found if not bed.folder.startswith(ABLATION)]
    ablations = [bed for bed in found if bed.folder.startswith(ABLATION)]
    claims = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob(f"*/{CLAIMS_FILE}"))
    }
    return judge(beds, claims)._replace(ablations=ablations)


def judge(beds: Sequence[Bed], claims: Mapping[str, dict[str, Any]]) -> Evidence:
    """Asks all questions of the page and corrects the answers together."""
    asked: dict[Asked, Question] = {}
    for name, record in claims.items():
        for claim, content in record["claims"].items():
            asked[Asked(CLAIM, name, claim)] = _of_claim(content, record["setting"])
    for bed in beds:
        for method in bed.curves:
            if method == PLAIN:
                continue
            quick = bed.found["quick"]
            asked[Asked(GAIN, bed.folder, method)] = questions.superiority(
                bed.gain(method), quick=quick
            )
            if method in one_gradient(bed):
                asked[Asked(GOAL, bed.folder, method)] = goal(bed, method)
    found = questions.verdicts(list(asked.values()))
    counted = sum(math.isfinite(one.p) for one in found)
    return Evidence(list(beds), dict(claims), dict(zip(asked, found, strict=True)), counted)


def one_gradient(bed: Bed) -> list[str]:
    """Returns the methods that climb at the price of one gradient, if SAM is there, too."""
    return [
        method
        for method in bed.curves
        if SAM in bed.curves
        and method not in (PLAIN, AVERAGED)
        and bed.gradients_per_step(method) <= GOAL_COST
    ]


def goal(bed: Bed, method: str) -> Question:
    """Asks whether a method gives what SAM gives, at each cost of the frontier.

    It must not be below SAM by more than a quarter of SAM's gain over the plain optimizer at the
    same cost, and not below SAM at all where SAM does not gain. It must be above the plain
    optimizer wherever the interval of SAM's gain is above zero.
    """
    quick = bed.found["quick"]
    parts = [
        questions.superiority(bed.at(cost, method, SAM), -margin(bed, cost), quick=quick)
        for cost in bed.budgets
    ]
    above = [questions.superiority(bed.at(cost, method), quick=quick) for cost in gaining(bed)]
    return questions.all_of(parts + above)


def margin(bed: Bed, cost: float) -> float:
    """Returns a quarter of SAM's gain over the plain optimizer at a cost, in points; at least 0."""
    return max(0.0, SHARE * bed.at(cost, SAM).mean)


def gaining(bed: Bed) -> list[float]:
    """Returns the costs at which the interval of SAM minus the plain optimizer is above zero."""
    return [cost for cost in bed.budgets if bed.at(cost, SAM).interval()[0] > 0]


def kept(bed: Bed, method: str) -> float:
    """Returns the share of SAM's gain that a method has, over the costs where SAM has one."""
    gains = [(bed.at(cost, method).mean, bed.at(cost, SAM).mean) for cost in gaining(bed)]
    return sum(own for own, _ in gains) / sum(of_sam for _, of_sam in gains) if gains else math.nan


def shortfall(bed: Bed, method: str) -> tuple[float, Confidence]:
    """Returns the cost at which a method is furthest below SAM, and the difference there."""
    found = {cost: bed.at(cost, method, SAM) for cost in bed.budgets}
    worst = min(found, key=lambda cost: found[cost].mean)
    return worst, found[worst]


def difference(first: Cell, second: Cell) -> Confidence:
    """Returns the accuracy of one cell minus that of another one, in points."""
    return confidence.of_correctness(first.correct, second.correct).scaled(100)


def matching(evidence: Evidence, setting: dict[str, Any], *, noisy: bool) -> Bed | None:
    """Returns the bed with the data set and the kind of network that claims were tested on."""
    for bed in evidence.beds:
        options = bed.found["configuration"]
        same = options["data"] == setting["data"]
        same &= options["model"].split(":")[0] == setting["model"].split(":")[0]
        if same and bool(options["label_noise"]) == noisy:
            return bed
    return None


def _bed(folder: pathlib.Path) -> Bed:
    found = results.read(folder)
    configuration = found["configuration"]
    ranges = common_ranges(configuration["optimizer"])
    curves = summarize(
        {key_of(record): record for record in found["runs"]},
        configuration["methods"],
        configuration["budgets"],
        {one: ranges | dict(KNOWN[one].tuned) for one in configuration["methods"]},
        configuration | {"tuning_seed": found["measurement"]["tuning_seed"]},
        found["dataset"]["test_predictions"],
        found["step_seconds"],
        quick=found["quick"],
    )
    return Bed(folder.name, found, {curve.method: curve for curve in curves})


def _of_claim(content: Mapping[str, Any], setting: Mapping[str, Any]) -> Question:
    numbers = ("mean", "low", "high", "p_for", "p_against")
    effects = [
        Effect(**one | {key: number(one[key]) for key in numbers})
        for one in content.get("effects", ())
    ]
    return claim_verdicts.question(effects, setting["quick"])
