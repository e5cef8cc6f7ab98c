"""The pass at the unperturbed parameters, and the oracle that the method calls."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flatreg._flax.guarded_update import nan_if_not_finite
from flatreg._flax.loss_scale import LossScale, unscaled
from flatreg._flax.metrics import Metrics
from flatreg.typing import GradFn, Grads


class CleanPass(NamedTuple):
    """The result of the pass at the unperturbed parameters.

    Attributes:
      metrics: the metrics of the loss, with the unscaled loss under the name ``"loss"``.
      variables: what the pass changed in the model, other than the parameters: the collections of
        a Linen model, or the changes of an NNX model's Variables.
      grads: the gradient, unscaled.
      grad_fn: the gradient oracle of the same loss, unscaled; its gradients are NaN if the loss of
        the clean pass is not finite, so that the step is skipped.
    """

    metrics: Metrics
    variables: Any
    grads: Grads
    grad_fn: GradFn


def clean_pass(
    evaluate: Callable[..., tuple[Any, Grads, GradFn]],
    *args: Any,
    dynamic_scale: LossScale | None,
) -> CleanPass:
    """Run the clean pass.

    Args:
      evaluate: the function that :func:`flatreg.value_and_grad_fn` returned, with
        ``has_aux=True``, for a loss that returns ``scaled_loss, (metrics, variables)``.
      *args: the arguments of ``evaluate``: the parameters, the batch, and so on.
      dynamic_scale: the loss scale by which the loss was multiplied, or None.

    Returns:
      The result of the pass.
    """
    (_, (metrics, variables)), grads, grad_fn = evaluate(*args)
    grads, grad_fn = unscaled(grads, grad_fn, dynamic_scale)
    return CleanPass(metrics, variables, grads, nan_if_not_finite(metrics["loss"], grad_fn))
