"""Data sets: augmentation, label noise and the validation split."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.data import augmentation, preparation
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
