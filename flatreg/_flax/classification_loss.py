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
      TypeError: if the batch is not a pair.
    """
    x, labels = _inputs_and_labels(batch)
    logits = logits_fn(x)
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
