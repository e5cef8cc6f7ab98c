"""Splitting the parameters of a state: trained and frozen ones, weights and FP8 scales."""

from collections.abc import Callable, Mapping

from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.traverse_util import flatten_dict, unflatten_dict

from flatreg._flax.oracles import transformed_oracle
from flatreg.typing import GradFn, Params


def split_trainable(params: Params, trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """Split the parameters into the trained and the frozen ones.

    Args:
      params: a nested dict of parameters.
      trainable: a function from the path of a parameter, such as ``"encoder/Dense_0/kernel"``, to
        whether the parameter is trained.

    Returns:
      The trained and the frozen parameters, two nested dicts.

    Raises:
      ValueError: if ``trainable`` selects no parameter.
    """
    flat = flatten_dict(params)
    chosen = {path: x for path, x in flat.items() if trainable("/".join(path))}
    if not chosen:
        raise ValueError(
            f"trainable selects no parameter of {['/'.join(path) for path in flat]}: write, for "
            'example, trainable=lambda path: path.startswith("head").'
        )
    frozen = {path: x for path, x in flat.items() if path not in chosen}
    return unflatten_dict(chosen), unflatten_dict(frozen)


def merge_frozen(params: Params, frozen: Params) -> Params:
    """Return the trained and the frozen parameters in one nested dict."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(params)) if frozen else params


def has_fp8_scales(params: Params) -> bool:
    """Return whether the parameters contain the scales of FP8 layers in addition to the weights.

    Flax stores these scales in a separate collection. Their "gradients" are their new values, with
    which a step overwrites them.
    """
    return isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params


def oracle_of_weights(grad_fn: GradFn, params: Params) -> GradFn:
    """Return the oracle as a function of the weights alone, with the FP8 scales held fixed."""
    return transformed_oracle(
        grad_fn, lambda grads: grads["params"], lambda weights: {**params, "params": weights}
    )
