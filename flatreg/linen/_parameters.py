"""The parameters of a state: the trained, the frozen, and the overwritten ones of FP8 layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.traverse_util import flatten_dict, unflatten_dict

from flatreg._flax.guard import after_each
from flatreg.typing import GradFn, Params


def parted(params: Params, trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """The parameters to train and the frozen ones."""
    flat = flatten_dict(params)
    chosen = {path: x for path, x in flat.items() if trainable("/".join(path))}
    if not chosen:
        raise ValueError(
            f"trainable picks none of the parameters {['/'.join(path) for path in flat]}: write "
            'trainable=lambda path: path.startswith("head"), say.'
        )
    frozen = {path: x for path, x in flat.items() if path not in chosen}
    return unflatten_dict(chosen), unflatten_dict(frozen)


def joined(params: Params, frozen: Params) -> Params:
    """Both together again."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(params)) if frozen else params


def without_aliases(tree: Any) -> Any:
    """The tree with a copy wherever an array stands in it a second time."""
    seen: set[int] = set()

    def own(x: Any) -> Any:
        if id(x) in seen and isinstance(x, jax.Array):
            return jnp.copy(x)
        seen.add(id(x))
        return x

    return jax.tree.map(own, tree)


def has_overwritten(params: Params) -> bool:
    """Whether Flax's FP8 scales, whose gradients are their new values, stand beside the weights."""
    return isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params


def without_overwritten(grad_fn: GradFn, params: Params) -> GradFn:
    """The oracle of the weights alone."""
    return after_each(lambda g: g["params"], grad_fn, lambda w: {**params, "params": w})
