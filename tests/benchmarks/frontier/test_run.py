"""The whole command, with a cheap substitute for training; then, slowly, the command itself."""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from benchmarks.common import results
from benchmarks.common.data import loaders
from benchmarks.frontier import journal, run
from benchmarks.frontier.__main__ import main
from benchmarks.frontier.options import TUNING_SEED, complete
from benchmarks.frontier.records import key_of
from benchmarks.frontier.run import Job
from benchmarks.frontier.trials import cells
from benchmarks.frontier.trials.contenders import CONTENDERS
from benchmarks.frontier.trials.evaluating import Predictions
from benchmarks.frontier.trials.training import Trained
from tests.support import commands

ROOT = pathlib.Path(__file__).parents[3]
QUIET = Console(quiet=True)
SMALL = {
    "train_size": 200,
    "label_noise": 0.2,
    "methods": "plain,sam,sam:every=5",
    "budgets": "0.25,1",
    "trials": 6,
    "more": 3,
    "seeds": 3,
    "flatness": "no",
}


class Substitute:
    """Stands in for training and evaluation.

    The accuracy falls with the distance of the learning rate from an optimum that lies outside its
    range, so that the range widens.
    """

    def __init__(self, monkeypatch, *, stop_after=None):
        self.trained, self.evaluated, self.left = [], [], stop_after
        monkeypatch.setattr(cells, "build", self.build)
        monkeypatch.setattr(cells, "predict", self.predict)
        monkeypatch.setattr(cells.measuring, "measure", self.measure)
        monkeypatch.setattr(run, "step_seconds", self.step_seconds)

    def build(self, contender, recipe, x, y):
        name = next(name for name, one in CONTENDERS.items() if one is contender)

        def train(values, steps, seed, x, y, examples):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            assert y.shape == x.shape[:1]
            self.trained.append((name, values, steps, seed, x, y, examples))
            return Trained({"params": (name, values, seed)}, False, steps * 1e-3)

        return train

    def predict(self, model, variables, x, y):
        name, values, seed = variables["params"]
        self.evaluated.append((seed, x, y))
        wanted = 0.7 - 0.1 * abs(np.log(values["learning_rate"] / 2.0))
        digest = hashlib.sha256(f"{name}{sorted(values.items())}{seed}".encode()).digest()
        draws = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(y))
        correct = draws < wanted
        return Predictions(correct, float(1 - correct.mean()), 0.05)

    def step_seconds(self, bed, methods):
        return dict.fromkeys(methods, 1e-3)

    def measure(self, model, variables, train, test, noise, seed, *, flatness):
        from benchmarks.common.measuring import Measurement

        return Measurement(*([1.0] * len(Measurement._fields)))


def job(folder, *, resume=False, **given):
    return Job(complete(**SMALL | given), folder, resume=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        substitute = Substitute(patch)
        found = run.run(job(folder), QUIET)
    return folder, found, substitute


def test_all_methods_get_the_same_trials_at_every_budget(finished):
    _, found, _ = finished
    for method, budget in itertools.product(SMALL["methods"].split(","), (0.25, 1.0)):
        some = [r for r in found["runs"] if (r["method"], r["budget"]) == (method, budget)]
        tests = [r["seed"] for r in some if r["stage"] == "test"]
        tuning = [r for r in some if r["stage"] == "tuning"]
        assert tests == [0, 1, 2]
        assert {r["seed"] for r in tuning} == {TUNING_SEED}
        assert len(tuning) in (6 + 3 * rounds for rounds in range(5))
        first = [r["hyperparameters"]["learning_rate"] for r in tuning[:6]]
        assert first == pytest.approx(
            [
                r["hyperparameters"]["learning_rate"]
                for r in found["runs"]
                if r["method"] == "plain" and r["budget"] == 0.25 and r["stage"] == "tuning"
            ][:6]
        )


def test_test_runs_train_the_winner_on_the_validation_set(finished):
    _, found, _ = finished
    rates = [r["hyperparameters"]["learning_rate"] for r in found["runs"]]
    assert max(rates) > 0.5, "a range widened towards the optimum at 2"
    by_cell = itertools.groupby(found["runs"], key=lambda r: (r["method"], r["budget"]))
    for _, group in by_cell:
        records = list(group)
        tuning = [r for r in records if r["stage"] == "tuning"]
        best = max(tuning, key=lambda r: (r["accuracy"], -r["loss"]))
        for record in records:
            if record["stage"] == "test":
                assert record["hyperparameters"] == best["hyperparameters"]


def test_tuning_never_sees_the_test_set(finished):
    """Trials train and evaluate on the tuning split; test runs on the other one."""
    substitute = finished[2]
    options = complete(**SMALL)
    bed = run._load(options, None)
    kinds = set()
    for trained, (seed, x, y) in zip(substitute.trained, substitute.evaluated, strict=True):
        assert trained[3] == seed
        split = bed.tuning if seed == TUNING_SEED else bed.test
        kinds.add(seed == TUNING_SEED)
        assert len(x) == {True: 287, False: 360}[seed == TUNING_SEED]
        np.testing.assert_array_equal(x, split.x_evaluated)
        np.testing.assert_array_equal(y, split.y_evaluated)
        np.testing.assert_array_equal(trained[4], split.x)
        np.testing.assert_array_equal(trained[5], split.labels(10, 0.2, seed))
        assert trained[6] == 200
        if seed != TUNING_SEED:
            np.testing.assert_array_equal(y, loaders.read("digits", None)["y_test"])
    assert kinds == {True, False}


def test_no_padding_is_trained_on(monkeypatch, tmp_path):
    """The inputs for tuning end with zeros, because the tuning split has fewer examples."""
    substitute = Substitute(monkeypatch)
    few = {"methods": "plain", "budgets": "1", "trials": 1, "more": 0, "seeds": 2}
    run.run(job(tmp_path, train_size=None, **few), QUIET)
    tuning, *test = substitute.trained
    assert (tuning[6], len(tuning[4]), len(tuning[5])) == (1150, 1437, 1437)
    for one in test:
        assert (one[6], len(one[4]), len(one[5])) == (1437, 1437, 1437)


def test_one_seed_alone_is_drawn_and_has_no_interval(monkeypatch, tmp_path):
    Substitute(monkeypatch)
    run.run(job(tmp_path, seeds=1, methods="plain,sam", trials=2, more=0), QUIET)
    assert (tmp_path / "frontier.png").exists()


def test_steps_come_from_the_budget_and_the_cost(finished):
    _, found, _ = finished
    assert found["dataset"]["reference_gradients"] == 40 * 4
    steps = {(r["method"], r["budget"]): (r["steps"], r["gradients"]) for r in found["runs"]}
    assert steps == {
        ("plain", 0.25): (40, 40),
        ("plain", 1.0): (160, 160),
        ("sam", 0.25): (20, 40),
        ("sam", 1.0): (80, 160),
        ("sam:every=5", 0.25): (33, 40),
        ("sam:every=5", 1.0): (133, 160),
    }


def test_the_files_hold_all_that_was_found(finished):
    folder, found, _ = finished
    read = results.read(folder)
    assert len(read["runs"]) == len(found["runs"])
    for kept, made in zip(read["runs"], found["runs"], strict=True):
        expected = {name: value for name, value in made.items() if name != "hyperparameters"}
        assert {name: kept[name] for name in expected} == expected
        assert kept["hyperparameters"] == made["hyperparameters"]
    assert not (folder / journal.FILE).exists()
    (curve, *_) = run.curves_of(read)
    assert curve.cells[0].accuracy.mean == pytest.approx(
        np.mean([r["accuracy"] for r in found["runs"] if r["stage"] == "test"][:3])
    )
    assert commands.is_png(folder / "frontier.png")
    text = (folder / "table.md").read_text()
    assert text.count("\n| sam:every=5 |") == 2 + 2
    assert "Test accuracy in % by cost" in text


FILES = ("runs.csv", "curves.npz", "table.md")


@pytest.mark.parametrize(
    "interrupted_after",
    [17, *(pytest.param(count, marks=pytest.mark.nightly) for count in (0, 4, 30))],
)
def test_a_resumed_command_writes_the_same_bytes(
    interrupted_after, finished, tmp_path, monkeypatch
):
    folder, found, whole = finished
    part = Substitute(monkeypatch, stop_after=interrupted_after)
    with pytest.raises(KeyboardInterrupt):
        run.run(job(tmp_path), QUIET)
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"method": "sam", "budg')  # as if the process was killed while it wrote
    rest = Substitute(monkeypatch)
    run.run(job(tmp_path, resume=True), QUIET)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert len(part.trained) + len(rest.trained) == len(whole.trained) == len(found["runs"])
    again = Substitute(monkeypatch)
    run.run(job(tmp_path, resume=True), QUIET)
    assert again.trained == []
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_only_the_same_options_and_code_continue(finished, capsys, monkeypatch):
    folder, _, _ = finished
    before = {name: (folder / name).read_bytes() for name in results.FILES}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    arguments += [f"--out={folder}"]
    message = commands.usage_error(main, arguments, capsys)
    assert "already has results. Add --resume" in message
    for option in ("--seeds=4", "--trials=7", "--budgets=0.25,2"):
        message = commands.usage_error(main, [*arguments, "--resume", option], capsys)
        assert f"{option[2:].partition('=')[0]} was" in message
    monkeypatch.setattr(results, "training_code", lambda patterns: "0" * 16)
    message = commands.usage_error(main, [*arguments, "--resume"], capsys)
    assert "training_code differs" in message
    assert before == {name: (folder / name).read_bytes() for name in results.FILES}


def test_the_training_code_covers_what_trains():
    """It covers each file that decides a number of a training, and no table or figure."""
    found = {path for one in run.TRAINING_CODE for path in ROOT.glob(one)}
    names = {path.relative_to(ROOT).as_posix() for path in found}
    assert names >= {
        "flatreg/typing.py",
        "flatreg/_core/combinators.py",
        "flatreg/methods/_sam.py",
        "flatreg/wrappers/_revisit.py",
        "flatreg/linen/_steps.py",
        "benchmarks/common/methods.py",
        "benchmarks/common/data/label_noise.py",
        "benchmarks/common/models/mlp.py",
        "benchmarks/frontier/tuning.py",
        "benchmarks/frontier/trials/training.py",
    }
    assert not any(name.endswith(("plots.py", "/table.py", "summary.py")) for name in names)


def comparable(folder):
    """Returns all numbers of the runs but their times."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in results.read(folder)["runs"]
    ]


@pytest.mark.slow
def test_the_quick_command_gives_a_table_and_a_figure(tmp_path):
    found = commands.run(main, ["--quick"], tmp_path)
    assert {run["method"] for run in found["runs"]} == {"plain", "sam"}
    for record in found["runs"]:
        assert not record["diverged"]
        assert record["accuracy"] > 0.2
    assert "no verdict" in (tmp_path / "table.md").read_text()
    assert commands.is_png(tmp_path / "frontier.png")


@pytest.mark.nightly
@pytest.mark.slow
def test_a_command_that_was_killed_resumes(tmp_path):
    """It is killed with SIGKILL while two processes train."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "benchmarks.frontier", "--quick", "--jobs=2"]
    command.append("--methods=plain")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = functools.partial(subprocess.Popen, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert start([*command, f"--out={whole}"]).wait() == 0
    job = start([*command, f"--out={killed}"], start_new_session=True)
    file = killed / journal.FILE
    while job.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = [json.loads(line) for line in file.read_bytes().split(b"\n")[:2]]
    assert start([*command, f"--out={killed}", "--resume"]).wait() == 0
    assert comparable(killed) == comparable(whole)
    found = {key_of(record): record for record in results.read(killed)["runs"]}
    for record in kept:  # times too: these were not repeated
        assert found[key_of(record)]["seconds"] == record["seconds"]
