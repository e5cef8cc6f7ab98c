"""What a training step needs at least, by counting copies of the parameters.

Parameters and AdamW's two moments are float32: 12 bytes per parameter. During a step there are
further copies, such as the gradient. They count 2 bytes per parameter, because the compiler may
keep them in bfloat16. Activations are not counted, so a step that does not fit by this arithmetic
cannot fit, and a step that does may still not.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

PLAIN = "adamw"
REVISIT = "revisit"
FLOAT32, BFLOAT16 = 4, 2  # bytes
STATE = 3  # the parameters and two moments
REMEMBERED = 4  # directions that `revisit` stores, by default


class Passes(NamedTuple):
    """What a step of a method evaluates.

    Attributes:
      gradients: the number of gradients.
      products: the number of Hessian-vector products.
      copies: a lower bound for the number of trees of the size of the parameters that exist at the
        same time during a step, beside parameters and moments: gradients and shifted parameters.
    """

    gradients: int
    products: int
    copies: int


PASSES = {
    PLAIN: Passes(1, 0, 1),  # the gradient
    REVISIT: Passes(1, 0, 1),
    "sam": Passes(2, 0, 2),  # the shifted parameters and their gradient
    "penalized_gradient": Passes(2, 0, 3),  # and the clean gradient
    # The part of the sum that the last gradient completes, its subtrahend, and as for SAM.
    "gam_accelerated": Passes(4, 0, 4),
    "gam": Passes(2, 2, 3),
    "gradient_norm_penalty": Passes(1, 1, 3),  # the gradient, the vector and the product
    "gradient_regularization": Passes(1, 1, 2),  # the gradient and the product
}


def passes(method: str) -> Passes | None:
    """Returns what a step of a method evaluates, or None for a method that is not in `PASSES`."""
    name, *settings = method.split(":")
    if "+" in method or any(one.startswith(("every", "after")) for one in settings):
        return None
    return PASSES.get(name)


def shard_bytes(run: Mapping[str, Any]) -> float:
    """Returns the bytes of the float32 parameters on one chip."""
    chips = run["chips"] if run["layout"] == "fsdp" else 1
    return float(FLOAT32 * run["parameters"] / chips)


def lower_bound(run: Mapping[str, Any]) -> float | None:
    """Returns the bytes per chip that a step needs at least; None for an unknown method."""
    found = passes(run["method"])
    if found is None:
        return None
    state = STATE + REMEMBERED * (run["method"] == REVISIT)
    return (state + found.copies * BFLOAT16 / FLOAT32) * shard_bytes(run)
