"""Data sets: augmentation, label noise, the validation split and the text."""

import collections
import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common.data import augmentation, preparation, text
from benchmarks.common.data.label_noise import with_label_noise


def test_augmentation_draws_a_crop_and_a_flip_per_image():
    """All shifts and reflections of an image occur among 400 augmented copies, and no others."""
    image = jnp.arange(1.0, 8 * 16 + 1).reshape(8, 16, 1)
    augment = jax.jit(augmentation.crop_and_flip)
    found = np.asarray(augment(jax.random.key(0), jnp.tile(image, (400, 1, 1, 1))))
    padded = np.pad(image, ((1, 1), (2, 2), (0, 0)))
    crops = [padded[i : i + 8, j : j + 16] for i in range(3) for j in range(5)]
    expected = {crop.tobytes() for one in crops for crop in (one, one[:, ::-1])}
    assert {one.tobytes() for one in found} == expected


def test_label_noise_changes_the_given_fraction_of_labels():
    """The noisy labels are other classes, and depend on the seed alone."""
    labels = np.arange(1000, dtype=np.int32) % 10
    noisy = with_label_noise(labels, 10, 0.4, seed=0)
    assert (noisy != labels).sum() == 400
    assert set(noisy) == set(range(10))
    np.testing.assert_array_equal(noisy, with_label_noise(labels, 10, 0.4, seed=0))
    assert (noisy != with_label_noise(labels, 10, 0.4, seed=1)).any()


def test_validation_examples_are_held_out_of_training():
    test, validation = (
        preparation.load("digits", None, 500, name) for name in ("test", "validation")
    )
    assert len(validation.x_train) == len(test.x_train) == 500
    pixels = {x.tobytes() for x in validation.x_test.astype(np.float16)}
    assert len(validation.x_test) == 287
    assert not pixels & {x.tobytes() for x in validation.x_train.astype(np.float16)}


@pytest.fixture
def shifted(tmp_path):
    """A data set whose test inputs have another mean and scale than its training inputs."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(3, 2, (200, 5)),
        "y_train": np.arange(200) % 4,
        "x_test": rng.normal(50, 9, (40, 5)),
        "y_test": np.arange(40) % 4,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz"), arrays


def test_inputs_are_standardized_by_the_training_set_alone(shifted):
    path, arrays = shifted
    found = preparation.load(path, None, None, "test")
    np.testing.assert_allclose(found.x_train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.x_train.std(0), 1, rtol=1e-5)
    mean, scale = arrays["x_train"].mean(0), arrays["x_train"].std(0)
    np.testing.assert_allclose(found.x_test, (arrays["x_test"] - mean) / scale, rtol=1e-4)


def test_validation_takes_a_fifth_of_the_training_set_alone(shifted):
    path, arrays = shifted
    found = preparation.load(path, None, None, "validation")
    assert (len(found.x_train), len(found.x_test)) == (160, 40)
    # Standardizing is affine, so that examples are recognized by ratios of their differences.
    together = np.concatenate([found.x_train, found.x_test])
    order = np.lexsort(together.T[::-1])
    expected = arrays["x_train"][np.lexsort(arrays["x_train"].T[::-1])]
    for found_column, column in zip(together[order].T, expected.T, strict=True):
        slope, offset = np.polyfit(column, found_column, 1)
        np.testing.assert_allclose(found_column, slope * column + offset, atol=1e-4)


def test_label_noise_of_text_replaces_characters():
    labels = np.arange(300, dtype=np.int32).reshape(20, 15) % 7
    noisy = with_label_noise(labels, 7, 0.4, seed=0)
    assert noisy.shape == labels.shape
    assert (noisy != labels).sum() == 120
    np.testing.assert_array_equal(noisy.ravel(), with_label_noise(labels.ravel(), 7, 0.4, seed=0))


def test_each_label_of_the_text_is_the_next_character():
    arrays = text.read()
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        assert x.shape == y.shape
        assert x.shape[1] == text.LENGTH
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        np.testing.assert_array_equal(x[1:, 0], y[:-1, -1], "windows follow each other")
    characters = np.concatenate([arrays["x_train"], arrays["x_test"]]).ravel()
    names = sorted(set(text.text()))
    frequent = collections.Counter(text.text())
    kept = [name for name in names if frequent[name] >= text.COMMON] + [text.RARE]
    assert characters.max() + 1 == len(kept)
    read = "".join(np.array(kept)[characters])
    original = text.text()[: len(read)]
    assert sum(a != b for a, b in zip(read, original, strict=True)) == read.count(text.RARE) > 0


def test_no_paragraph_of_the_text_occurs_twice():
    """In the documentation, many do, some of them in many topics."""
    whole = "\n\n".join(pydoc_data.topics.topics.values())
    paragraphs = text.text().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert set(paragraphs) == {p.strip("\n") for p in whole.split("\n\n")} - {""}


def test_the_parts_of_the_text_do_not_overlap():
    validation, test = (preparation.load("text", None, None, p) for p in ("validation", "test"))
    assert validation.num_classes == test.num_classes == 1 + test.x_train.max()
    whole = np.concatenate([validation.x_train, validation.x_test, test.x_test])
    arrays = text.read()
    np.testing.assert_array_equal(whole, np.concatenate([arrays["x_train"], arrays["x_test"]]))
    np.testing.assert_array_equal(test.x_train, arrays["x_train"])
    few = preparation.load("text", None, 100, "validation")
    np.testing.assert_array_equal(few.x_train, validation.x_train[:100])
    np.testing.assert_array_equal(few.x_test, validation.x_test)
