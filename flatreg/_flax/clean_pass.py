"""The pass at the unperturbed parameters, and the oracle that the method calls."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flatreg._core.observe import get_opaque_trace_state
from flatreg._core.oracle import OracleWithAux
from flatreg._flax.guarded_update import nan_if_not_finite
from flatreg._flax.loss_scale import LossScale, unscaled
from flatreg._flax.metrics import Metrics
from flatreg.typing import GradFn, Grads, Params


class CleanPass(NamedTuple):
    """The result of the pass at the unperturbed parameters.

    Attributes:
      metrics: the metrics of the loss, with the unscaled loss under the name ``"loss"``.
      variables: what the pass changed in the model, other than the parameters: the collections of
        a Linen model, or the changes of an NNX model's Variables.
      grads: the gradient, unscaled.
      grad_fn: the gradient oracle of the same loss, unscaled; its gradients are NaN if the loss of
        the clean pass is not finite, so that the step is skipped.
      on_whole_batch: a function that returns the metrics and variables of the pass that used the
        whole batch. Call it after the update. It is the clean pass, except with
        ``ascent_fraction < 1``, where it is the last perturbed pass. If the method has called the
        oracle inside a ``lax.cond`` or not at all, the metrics and variables of the clean pass are
        returned.
    """

    metrics: Metrics
    variables: Any
    grads: Grads
    grad_fn: GradFn
    on_whole_batch: Callable[[], tuple[Metrics, Any]]


class _RecordedOracle:
    """An oracle that keeps the aux of its last call in the trace in which it was made."""

    def __init__(self, oracle: OracleWithAux, aux: Any) -> None:
        self._oracle, self._trace = oracle, get_opaque_trace_state()
        self.aux = aux

    def __call__(self, params: Params) -> Grads:
        (_, aux), grads = self._oracle.evaluate(params)
        if get_opaque_trace_state() == self._trace:  # otherwise aux could not leave its trace
            self.aux = aux
        return grads


def clean_pass(
    evaluate: Callable[..., tuple[Any, Grads, GradFn]],
    *args: Any,
    dynamic_scale: LossScale | None,
    ascent_fraction: float = 1.0,
    skip_nonfinite: bool = True,
) -> CleanPass:
    """Run the clean pass.

    Args:
      evaluate: the function that :func:`flatreg.value_and_grad_fn` returned, with
        ``has_aux=True``, for a loss that returns ``scaled_loss, (metrics, variables)``.
      *args: the arguments of ``evaluate``: the parameters, the batch, and so on.
      dynamic_scale: the loss scale by which the loss was multiplied, or None.
      ascent_fraction: the fraction of the batch that the clean pass uses.
      skip_nonfinite: whether the gradients of the oracle are NaN if the clean loss is not finite.

    Returns:
      The result of the pass.
    """
    (_, (metrics, variables)), grads, grad_fn = evaluate(*args)
    on_whole_batch = lambda: (metrics, variables)  # noqa: E731
    if ascent_fraction < 1 and isinstance(grad_fn, OracleWithAux):
        grad_fn = recorded = _RecordedOracle(grad_fn, (metrics, variables))
        on_whole_batch = lambda: recorded.aux  # noqa: E731
    grads, grad_fn = unscaled(grads, grad_fn, dynamic_scale)
    if skip_nonfinite:
        grad_fn = nan_if_not_finite(metrics["loss"], grad_fn)
    return CleanPass(metrics, variables, grads, grad_fn, on_whole_batch)
