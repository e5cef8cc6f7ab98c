"""Augmentation of training images on the device: a random crop out of a padded image, and a flip.

By dm-pix, whose functions take one image and one key, vectorized here.
"""

import importlib.util
from typing import Any

import jax

from benchmarks.common.cli import UsageError

PADDING = 8  # the part of the height and of the width that is added: 4 pixels a side for CIFAR's 32


def check_installed() -> None:
    """Says before any work what is missing."""
    if importlib.util.find_spec("dm_pix") is None:
        raise UsageError(
            "--augment needs dm-pix, which is not installed: pip install dm-pix, or leave "
            "--augment out."
        )


def crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts each image by up to an eighth and mirrors it in half of all cases, on its own.

    What a shift uncovers is 0, the mean of the standardized data.
    """
    import dm_pix as pix  # an option's only

    _, height, width, _ = shape = images.shape
    padded = height + 2 * (height // PADDING), width + 2 * (width // PADDING)

    def augment(key: jax.Array, image: jax.Array) -> Any:
        crop_key, flip_key = jax.random.split(key)
        image = pix.random_crop(crop_key, pix.pad_to_size(image, *padded), shape[1:])
        return pix.random_flip_left_right(flip_key, image)

    augmented: jax.Array = jax.vmap(augment)(jax.random.split(key, len(images)), images)
    return augmented
