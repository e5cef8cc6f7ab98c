"""The loss of a classifier: softmax cross-entropy, with the accuracy as a metric."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import wide_dtype
from flatreg._flax.metrics import Metrics


def cross_entropy_and_accuracy(
    logits_fn: Callable[[Any], jax.Array], batch: Any
) -> tuple[jax.Array, Metrics]:
    """Return the mean softmax cross-entropy of a batch, with the accuracy as a metric.

    Args:
      logits_fn: the model, a function of the inputs that returns logits of shape
        ``(examples, classes)``.
      batch: a pair ``(x, labels)`` of inputs and integer labels.

    Returns:
      The loss, in at least float32, and ``{"accuracy": accuracy}`` with the fraction of examples
      whose largest logit is that of the label.

    Raises:
      TypeError: if the batch is not a pair, or if the labels are not integers.
      ValueError: if there is not one label per example, for example because labels are one-hot.
    """
    x, labels = _inputs_and_labels(batch)
    logits = logits_fn(x)
    _check_labels(labels, logits)
    logits = logits.astype(wide_dtype(logits.dtype))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels)}


def _inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        keys = f" with the keys {list(batch)}" if isinstance(batch, Mapping) else ""
        raise TypeError(
            f"classification_loss expects batch = (x, labels), got a {type(batch).__name__}{keys}. "
            'Pass a pair to the step, for example (batch["image"], batch["label"]), or write your '
            "own loss function."
        )
    return batch[0], batch[1]


def _check_labels(labels: Any, logits: jax.Array) -> None:
    """Check that the labels are integers, one per row of logits."""
    dtype, shape = jnp.result_type(labels), jnp.shape(labels)
    found = f"the labels are {dtype}{list(shape)} and the logits {logits.dtype}{list(logits.shape)}"
    if shape == logits.shape and logits.ndim > 1:
        raise ValueError(
            "classification_loss expects one integer label per example, but the labels have the "
            f"shape of the logits, as one-hot labels and class probabilities do: {found}. Pass "
            "labels.argmax(-1), or write your own loss with "
            "optax.softmax_cross_entropy(logits, labels).mean()."
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"classification_loss expects integer labels, but {found}. Pass labels.astype(int) if "
            "they are class numbers. For regression, write your own loss function."
        )
    if shape != logits.shape[:-1]:
        raise ValueError(
            f"classification_loss expects logits of shape (examples, classes) and labels of shape "
            f"(examples,), but {found}. If the labels have an axis of length 1, pass "
            "labels.squeeze(-1)."
        )
