"""The option ``forward_fn`` of the train steps, which splits a loss for Functional-SAM.

The network computes its outputs in ``forward_fn``. The loss function then receives them in place of
the model, so that its gradient at the outputs can be kept at the unperturbed parameters.
"""

from typing import Any


class GivenOutputs:
    """What the loss function receives in place of the model: any call returns the same outputs.

    Attributes:
      used: whether the loss function has asked for the outputs.
    """

    def __init__(self, outputs: Any) -> None:
        """Store the outputs that ``forward_fn`` returned."""
        self._outputs = outputs
        self.used = False

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Return the outputs of the network for any arguments."""
        self.used = True
        return self._outputs

    def __getattr__(self, name: str) -> Any:
        """Raise an error that says how the loss gets more than the outputs."""
        raise AttributeError(
            f"with forward_fn, loss_fn receives a function that returns the outputs of the "
            f"network, and this function has no attribute {name!r}. Return everything that the "
            "loss needs from forward_fn, for example a pair of the logits and a penalty on the "
            "weights, or remove forward_fn."
        )


def check_functional(ascent_fraction: float) -> None:
    """Check that a step with ``forward_fn`` does not use ``ascent_fraction``."""
    if ascent_fraction != 1:
        raise ValueError(
            "forward_fn and ascent_fraction cannot be used together, because Functional-SAM needs "
            "the outputs of the whole batch at the unperturbed parameters: remove one of them."
        )
