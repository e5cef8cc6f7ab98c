"""The splits for tuning and testing: they are disjoint, and only training labels have noise."""

import numpy as np
import pytest

from benchmarks.common.cli import UsageError
from benchmarks.common.data import loaders, preparation
from benchmarks.common.models import build
from benchmarks.frontier.options import TUNING_SEED, complete
from benchmarks.frontier.trials import bed as beds

NOISE = 0.4


def make(**given):
    options = complete(label_noise=NOISE, **given)
    tuning, test = (
        preparation.load(options.data, None, options.train_size, part)
        for part in ("validation", "test")
    )
    return beds.make(options, build.build(options.model, test), tuning, test), tuning, test


@pytest.fixture(scope="module")
def digits():
    return make()


def pixels(x):
    """Returns the examples of digits by their pixels from 0 to 16, which are scaled and shifted."""
    steps = np.asarray(x) - np.min(x)
    return {np.round(16 * one / steps.max()).astype(np.int8).tobytes() for one in steps}


def test_validation_examples_are_in_no_other_split(digits):
    _, tuning, test = digits
    arrays = loaders.read("digits", None)
    validation, trained = pixels(tuning.x_test), pixels(tuning.x_train)
    assert len(validation) == len(tuning.x_test) == 287
    assert len(trained) == len(tuning.x_train) == 1150
    assert not validation & trained
    assert validation | trained == pixels(arrays["x_train"]) == pixels(test.x_train)
    assert pixels(test.x_test) == pixels(arrays["x_test"])
    assert not pixels(test.x_test) & (validation | trained)


def test_the_bed_keeps_the_splits_apart(digits):
    bed, tuning, test = digits
    for split, data in ((bed.tuning, tuning), (bed.test, test)):
        np.testing.assert_array_equal(split.x_evaluated, data.x_test)
        np.testing.assert_array_equal(split.y_evaluated, data.y_test)
        np.testing.assert_array_equal(split.x[: len(data.x_train)], data.x_train)
        np.testing.assert_array_equal(split.clean_labels, data.y_train)
        assert len(split.x) == len(test.x_train)
    assert not np.any(bed.tuning.x[len(tuning.x_train) :])
    assert bed.description["validation_examples"] == 287
    assert bed.reference == 40 * (1437 // 50) == 1120
    assert bed.most_steps == 4 * 1120


def test_label_noise_changes_training_labels_only(digits):
    bed, tuning, test = digits
    for split, data in ((bed.tuning, tuning), (bed.test, test)):
        for seed in (0, TUNING_SEED):
            noisy = np.asarray(split.labels(bed.num_classes, NOISE, seed))
            assert noisy.shape == (len(split.x),)
            examples = len(data.y_train)
            assert (noisy[:examples] != data.y_train).sum() == round(NOISE * examples)
        assert (noisy != np.asarray(split.labels(bed.num_classes, NOISE, 1))).any()
        np.testing.assert_array_equal(split.clean_labels, data.y_train)
        np.testing.assert_array_equal(split.y_evaluated, data.y_test)


def test_text_has_labels_for_each_character():
    bed, _, test = make(data="text", train_size=40)
    labels = bed.test.labels(bed.num_classes, 0.25, 0)
    assert labels.shape == bed.test.x.shape == (40, 64)
    assert (np.asarray(labels) != test.y_train).sum() == round(0.25 * labels.size)
    assert bed.description["test_predictions"] == test.y_test.size


def test_a_batch_must_fit_the_tuning_split():
    with pytest.raises(UsageError, match="Give --batch-size 1150 or less"):
        make(batch_size=1400)
