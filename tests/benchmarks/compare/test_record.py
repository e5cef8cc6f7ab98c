"""What a run trains on and is measured on, without training."""

import numpy as np
import pytest

from benchmarks.common import measuring, training
from benchmarks.common import methods as grammar
from benchmarks.common.data import preparation
from benchmarks.common.options import complete
from benchmarks.common.statistics.correctness import unpacked
from benchmarks.compare import run as compare_run


@pytest.fixture
def recorded(monkeypatch):
    """Returns a function that records a run from a seed: its record, and the examples it used."""

    def record(seed):
        options = complete(methods="sgd", label_noise=0.4, flatness="no")
        data = preparation.load("digits", None, None, "test")
        comparison = compare_run.comparison_of(data, None, options)
        used = {}

        def epochs(program, seed, x, y):
            used.update(trained_on=(x, y), seed=seed)
            state = type("State", (), {"variables": None})()
            yield training.Epoch(state, 1, 1.0, 0.5)

        def measure(model, variables, train, test, noise, seed, *, flatness):
            used.update(measured_on=(train, test), noise=noise)
            return measuring.Measurement(*np.arange(9.0))

        monkeypatch.setattr(training, "epochs", epochs)
        monkeypatch.setattr(measuring, "measure", measure)
        monkeypatch.setattr(measuring, "evaluate", lambda *_: measuring.Evaluation(1, 1, 1))
        monkeypatch.setattr(measuring, "correctness", lambda _, __, x, y: np.asarray(y) == 3)
        (method,) = grammar.parse("sgd", "sgd")
        program = training.Program(None, None, 1, 1)
        found = compare_run._record(comparison, method, program, seed, lambda *_: None)
        return found, used, data

    return record


def test_only_training_labels_are_noisy(recorded):
    _, used, data = recorded(1)
    (_, noisy), (_, y_test) = used["measured_on"]
    np.testing.assert_array_equal(y_test, data.y_test)
    assert np.mean(np.asarray(noisy) != data.y_train) == pytest.approx(0.4, abs=1e-3)
    np.testing.assert_array_equal(used["trained_on"][1], noisy)
    assert used["noise"] == 0.4
    assert used["seed"] == 1


def test_other_seeds_have_other_wrong_labels(recorded):
    labels = [np.asarray(recorded(seed)[1]["trained_on"][1]) for seed in (0, 1, 0)]
    assert (labels[0] != labels[1]).any()
    np.testing.assert_array_equal(labels[0], labels[2])


def test_the_correctness_of_each_test_example_is_kept(recorded):
    found, _, data = recorded(0)
    np.testing.assert_array_equal(unpacked(found["correct"], 360), data.y_test == 3)
