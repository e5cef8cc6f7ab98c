"""Augmentation of training images: a random crop out of the padded image, and a random flip.

The functions of dm-pix take one image and one key; here they are vectorized over a batch.
"""

from typing import Any

import jax

AUGMENTING = 2**16  # folded into the key of a step; call number c of the model folds in c
PADDING = 8  # each side of an image grows by 1/8 of its size: by 4 pixels for 32 pixels


def crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts each image at random by up to an eighth of its size, and mirrors half of the images.

    Args:
      key: a PRNG key.
      images: the batch, of shape (batch, height, width, channels), standardized to mean 0.

    Returns:
      The augmented batch in the same shape. Pixels from outside the image are 0, the mean of the
      data.
    """
    import dm_pix as pix  # an optional dependency

    _, height, width, _ = shape = images.shape
    padded = height + 2 * (height // PADDING), width + 2 * (width // PADDING)

    def augment(key: jax.Array, image: jax.Array) -> Any:
        crop_key, flip_key = jax.random.split(key)
        image = pix.random_crop(crop_key, pix.pad_to_size(image, *padded), shape[1:])
        return pix.random_flip_left_right(flip_key, image)

    augmented: jax.Array = jax.vmap(augment)(jax.random.split(key, len(images)), images)
    return augmented
