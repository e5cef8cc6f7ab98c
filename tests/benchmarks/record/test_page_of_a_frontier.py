"""The words of the page follow from the records: won, lost and undecided, never the other way."""

import json
import re

import numpy as np
import pytest

from benchmarks.common import results
from benchmarks.common.statistics.correctness import packed
from benchmarks.frontier.options import TUNING_SEED, common_ranges
from benchmarks.frontier.trials.contenders import KNOWN
from benchmarks.frontier.tuning import draw
from benchmarks.page import ablation, claims_table, price
from benchmarks.page.__main__ import main, page
from benchmarks.page.evidence import GAIN, GOAL, Asked, read
from benchmarks.page.sentences import sentences

EXAMPLES, BUDGETS, TRIALS = 400, (0.5, 1.0, 2.0), 3
FOLDER = "frontier-digits-mlp-noise40"
PLAIN = (0.70, 0.72, 0.74)


def frontier(folder, methods, *, seeds=10, quick=False, name=FOLDER):
    """Writes a record: for each method its test accuracies by budget, which grow on validation.

    A method has a few more right with some seeds than with others.
    """
    runs, order = [], np.random.default_rng(0).permutation(EXAMPLES)
    for number, (method, accuracies) in enumerate(methods.items()):
        space = common_ranges("sgd") | dict(KNOWN[method].tuned)
        points = draw(space, TRIALS, TUNING_SEED)
        names = sorted({key for m in methods for key in KNOWN[m].tuned} | {*space})
        rng = np.random.default_rng(number)
        for budget, accuracy in zip(BUDGETS, accuracies, strict=True):
            steps = int(100 * budget / KNOWN[method].gradients)
            common = {"method": method, "budget": budget, "steps": steps}
            common |= {"gradients": 100 * budget, "diverged": False, "loss": 0.4}
            for trial, point in enumerate(points):
                values = {name: point.get(name) for name in names}
                record = {"stage": "tuning", "number": trial, "hyperparameters": values}
                runs.append(common | record | {"accuracy": 0.5 + 0.1 * budget - 0.1 * trial})
            for seed in range(seeds):
                right = order < round(accuracy * EXAMPLES) + rng.integers(-2, 3)
                record = {"stage": "test", "number": seed, "hyperparameters": values}
                record |= {"accuracy": right.mean(), "calibration_error": 0.02}
                record |= {"measured": {"lambda_max": 3.0 - number, "noise_accuracy": 0.5}}
                runs.append(common | record | {"correct": packed(right).tolist()})
    configuration = {"data": "digits", "model": "mlp", "label_noise": 0.4, "optimizer": "sgd"}
    configuration |= {"methods": [*methods], "budgets": [*BUDGETS], "trials": TRIALS, "more": 0}
    configuration |= {"seeds": seeds, "epochs": 40, "flatness": "spectrum"}
    dataset = {"test_predictions": EXAMPLES, "test_examples": EXAMPLES, "train_examples": 900}
    found = {
        "command": "python -m benchmarks.frontier",
        "configuration": configuration,
        "dataset": dataset | {"reference_gradients": 100},
        "measurement": {"tuning_seed": TUNING_SEED},
        "step_seconds": dict.fromkeys(methods, 0.01),
        "quick": quick,
        "runs": runs,
    }
    path = folder / name
    path.mkdir(exist_ok=True)
    results.save(path, found)
    (path / "table.md").write_text("# A title\n")
    return read(folder)


def shifted(points):
    return tuple(one + points / 100 for one in PLAIN)


@pytest.mark.parametrize(
    ("points", "head", "words"),
    [
        (10, "SAM is better than a tuned plain optimizer on every bed", "better on 1 of 1 beds"),
        (-10, "SAM is not shown to be better", "worse on 1 (digits, mlp, 40% wrong labels)"),
        (0, "SAM is not shown to be better", "undecided on 1"),
    ],
)
def test_the_sentence_on_sam_has_the_words_of_its_verdict(tmp_path, points, head, words):
    evidence = frontier(tmp_path, {"plain": PLAIN, "sam": shifted(points)})
    (sentence,) = [one for one in sentences(evidence) if "Each at its best cost, SAM" in one]
    assert sentence.startswith(f"**{head}")
    assert words in sentence
    assert f"({FOLDER}/table.md)" in sentence
    gain = float(re.search(r"Its gain in points: ([-+][\d.]+) \(", sentence)[1])
    assert gain == pytest.approx(points, abs=0.5)


def test_exchanged_records_exchange_the_verdict(tmp_path):
    """An inversion anywhere between the records and the sentences gives the wrong sign."""
    straight = frontier(tmp_path, {"plain": PLAIN, "sam": shifted(8)})
    inverted = frontier(tmp_path, {"plain": shifted(8), "sam": PLAIN})
    asked = Asked(GAIN, FOLDER, "sam")
    assert [one.verdicts[asked].verdict for one in (straight, inverted)] == ["for", "against"]
    (bed,) = inverted.beds
    by_hand = {}
    for run in results.read(tmp_path / FOLDER)["runs"]:
        if run["stage"] == "test" and run["budget"] == 2.0:
            by_hand.setdefault(run["method"], []).append(run["accuracy"])
    expected = 100 * (np.mean(by_hand["sam"]) - np.mean(by_hand["plain"]))
    assert bed.gain("sam").mean == pytest.approx(expected)
    assert bed.at(0.5, "sam").mean == pytest.approx(-8, abs=0.5)


def test_of_many_beds_a_sentence_has_the_extremes_and_one_link(tmp_path):
    """SAM gains -2, 0, 2 and 4 points on four beds. The link leads to the list of all beds."""
    for points in (0, 4, -2, 2):
        methods = {"plain": PLAIN, "sam": shifted(points)}
        evidence = frontier(tmp_path, methods, name=f"{FOLDER}-{points}")
    (sentence,) = [one for one in sentences(evidence) if "Its gain in points" in one]
    low, high = re.search(r"points: from ([-+.\d]+) .* to ([-+.\d]+) \(.*\) on", sentence).groups()
    assert (float(low), float(high)) == pytest.approx((-2, 4), abs=0.5)
    assert sentence.endswith("([all beds](#the-frontiers))")
    section = page(tmp_path, evidence).split("## The frontiers\n")[1].split("\n## ")[0]
    assert all(f"({bed.folder}/table.md)" in section for bed in evidence.beds)


def test_methods_are_compared_at_the_same_cost(tmp_path):
    """SAM loses at the least cost and wins at the largest one."""
    (bed,) = frontier(tmp_path, {"plain": PLAIN, "sam": (0.62, 0.72, 0.82)}).beds
    found = [bed.at(cost, "sam").mean for cost in BUDGETS]
    assert found == pytest.approx([-8, 0, 8], abs=0.5)
    (sentence,) = [one for one in sentences(read(tmp_path)) if "SAM at equal cost" in one]
    assert re.search(
        r"least cost of each bed -[78]\.\d \([^;]*\) \[0.5\] on [^;]*; "
        r"at its largest cost \+[78]\.\d \([^;]*\) \[2\] on",
        sentence,
    )
    assert "the interval is below zero on 1 of 1 beds" in sentence
    assert "A radius of zero" not in sentence


def test_a_loss_of_sam_at_equal_steps_is_called_one_of_tuning(tmp_path):
    """SAM at cost 2 is six points below the plain optimizer at cost 1, with as many steps."""
    evidence = frontier(tmp_path, {"plain": PLAIN, "sam": (0.62, 0.64, 0.66)})
    (sentence,) = [one for one in sentences(evidence) if "SAM at equal cost" in one]
    assert "the plain optimizer is above SAM on 1 of 1 beds (digits, mlp" in sentence
    assert "a part of its loss is one of tuning" in sentence


@pytest.mark.parametrize(
    ("points", "word", "means"),
    [(10, "reached", "yes"), (-3, "missed", "no"), (6.2, "undecided", "yes")],
)
def test_the_goal_is_reached_missed_or_undecided(tmp_path, points, word, means):
    """SAM gains 8 points at each cost, so that the margin is 2 points."""
    methods = {"plain": PLAIN, "sam": shifted(8), "momentum_sam": shifted(points)}
    evidence = frontier(tmp_path, methods)
    *_, goals = price.tables(evidence)
    ((*_, in_the_means, verdict),) = goals.rows
    assert (in_the_means, verdict) == (means, word)
    (sentence,) = [one for one in sentences(evidence) if "at the price of one gradient" in one]
    assert f"is {word} in 1 of 1 pairs" in sentence
    assert f"share of SAM's gain: {points / 8:.0%}"[:-3] in sentence
    assert evidence.count == 3
    by_cost = price.tables(evidence)[0]
    assert [row[0] for row in by_cost.rows] == ["plain", "sam", "momentum_sam"]


def test_an_ablation_is_compared_with_revisit_and_not_judged(tmp_path):
    judged = frontier(tmp_path, {"plain": PLAIN, "sam": shifted(8)})
    methods = {"plain": PLAIN, "sam": shifted(8), "revisit": shifted(6)}
    methods |= {"revisit:group=1": shifted(2), "slide": shifted(12)}
    evidence = frontier(tmp_path, methods, name="frontier-ablation-digits-mlp")
    assert evidence.verdicts == judged.verdicts
    assert [bed.folder for bed in evidence.beds] == [FOLDER]
    (table,) = ablation.tables(evidence)
    rows = {row[0]: [float(cell.split()[0]) for cell in row[1:]] for row in table.rows}
    assert rows["revisit: accuracy, %"] == pytest.approx([76, 78, 80], abs=0.5)
    assert rows["slide"] == pytest.approx([6] * 3, abs=0.5)
    assert rows["revisit:group=1"] == pytest.approx([-4] * 3, abs=0.5)
    count, summary = ablation.sentences(evidence)
    assert count.startswith("These 6 comparisons are descriptive")
    assert "3 are above zero (`slide` 3 times), and 3 below zero (`revisit:group=1` 3" in count
    assert re.search(r"by group size, 1: -[34]\.\d; `slide` \+[56]\.\d\.", summary)
    assert re.findall(r"`(\S+)` \(", summary) == ["slide", "revisit", "revisit:group=1"]
    assert re.search(r"the plain optimizer has -[78]\.\d\.$", summary)
    section = (
        page(tmp_path, evidence)
        .split("(frontier-ablation-digits-mlp)\n", 1)[1]
        .split("\n## ", 1)[0]
    )
    assert "better than the plain optimizer, each at its best" not in section
    assert "| verdict |" not in section


def test_a_gain_below_a_point_needs_ten_seeds_on_the_page(tmp_path):
    methods = {"plain": PLAIN, "sam": shifted(0.75)}
    asked = Asked(GAIN, FOLDER, "sam")
    for seeds, verdict in ((9, "undecided"), (10, "for")):
        assert frontier(tmp_path, methods, seeds=seeds).verdicts[asked].verdict == verdict
    assert frontier(tmp_path, methods, quick=True).verdicts[asked].verdict == "no verdict"


def effect(mean, p_for, p_against, quantity="accuracy, points", **more):
    found = {"quantity": quantity, "prediction": "> 0", "mean": mean, "low": mean - 1}
    found |= {"high": mean + 1, "seeds": 5, "p_for": p_for, "p_against": p_against, "reason": ""}
    return found | more


def claims(folder, **statements):
    """Writes claims.json with the effects of each claim."""
    found = {
        name: {"statement": name, "source": "arXiv", "caveat": "not tuned", "effects": effects}
        | {"folders": [], "seeds": 5, "command": "the command"}
        for name, effects in statements.items()
    }
    setting = {"data": "digits", "model": "mlp", "quick": False, "train_examples": 900}
    record = {"setting": setting, "claims": found, "checks": {}, "corrected_over": 1}
    (folder / "claims-digits").mkdir(exist_ok=True)
    (folder / "claims-digits" / "claims.json").write_text(json.dumps(record))
    (folder / "claims-digits" / "table.md").write_text("# Claims\n")


@pytest.mark.parametrize(("points", "fallen"), [(1, 1), (17, 0)])
def test_an_earlier_gain_stands_only_if_the_tuned_one_does(tmp_path, points, fallen):
    claims(tmp_path, below_sgd_noisy=[effect(17, 1e-6, 1)])
    evidence = frontier(tmp_path, {"plain": PLAIN, "sam": shifted(points)})
    (sentence,) = [one for one in sentences(evidence) if "does not stand" in one]
    assert f"do not stand on {fallen} of 1 beds" in sentence
    assert "+17.0 (+16.0 to +18.0) becomes +" in sentence
    (table,) = claims_table.tables(evidence)
    ((statement, verdict, _, scale, tuned),) = table.rows
    assert statement.endswith("†")
    assert "not tuned" in table.caption
    assert (verdict, scale) == ("reproduced", "digits, mlp, 900 training examples, 5 seeds")
    assert tuned.startswith("sam minus plain: +")


def test_the_table_of_claims_shows_what_decides_them(tmp_path):
    lost = effect(-4, 1, 1e-6, "the refuted one")
    claims(
        tmp_path,
        below_sam=[effect(3, 1e-6, 1), lost],
        perturbed=[effect(3, 1e-6, 1), effect(1, 1, 1, reason="runs are missing")],
        wide=[effect(3, 0.01, 1), effect(1, 0.4, 0.6, "the weakest one")],
    )
    judged, missing = claims_table.tables(read(tmp_path))
    rows = [row[1:3] for row in judged.rows]
    assert rows[0] == ["not reproduced", "the refuted one: -4 (-5 to -3), predicted > 0"]
    assert rows[1] == ["inconclusive", "the weakest one: +1 (+0 to +2), predicted > 0"]
    assert missing.rows == [["perturbed (arXiv)", "digits, mlp"]]


def test_verdicts_are_corrected_over_claims_and_frontiers(tmp_path):
    """Alone, a claim with p = 0.02 would be reproduced; beside another question, it is not."""
    claims(tmp_path, below_sgd=[effect(3, 0.02, 0.98)])
    asked = Asked("claim", "claims-digits", "below_sgd")
    assert read(tmp_path).verdicts[asked].verdict == "for"
    evidence = frontier(tmp_path, {"plain": PLAIN, "sam": PLAIN})
    assert evidence.verdicts[asked].verdict == "undecided"
    assert evidence.verdicts[asked].p == pytest.approx(0.08)
    assert Asked(GOAL, FOLDER, "sam") not in evidence.verdicts


@pytest.mark.slow
def test_the_command_writes_the_page_and_its_figures(tmp_path):
    claims(tmp_path, below_sgd_noisy=[effect(17, 1e-6, 1)])
    frontier(tmp_path, {"plain": PLAIN, "sam": shifted(8), "momentum_sam": shifted(7)})
    assert main([f"--results={tmp_path}"]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    for figure in ("frontiers.png", "forest.png"):
        assert f"({figure})" in text
        assert (tmp_path / figure).stat().st_size > 5_000
    assert "corrected for all 4 verdicts of this page" in text
    assert re.search(r"\| sam \| 8[12]\.\d \(", text)
    headings = re.findall("^#+ .*", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert main([f"--results={tmp_path}", "--check"]) == 0
