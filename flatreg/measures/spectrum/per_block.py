"""One measure of several parts of a network, such as the blocks of a transformer."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import restrict
from flatreg.typing import Params, Predicate

Result = TypeVar("Result")


def per_block(
    measure: Callable[..., Result],
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    blocks: Mapping[str, Predicate],
    **options: Any,
) -> dict[str, Result]:
    """Applies a measure to each of several blocks of the parameters, with all others fixed.

    With ``measure=measures.top_eigenpairs`` the results are the spectra of the diagonal blocks of
    the Hessian. The cost is that of one measure per block, and the memory is that of the largest
    block.

    Args:
      measure: a measure that is called as ``measure(loss_fn, params, key, **options)``, such as
        :func:`top_eigenpairs`, :func:`trace` or :func:`spectral_density`.
      loss_fn: the loss, ``params -> scalar``.
      params: all parameters.
      key: the random key. Each block gets a key of its own.
      blocks: a dictionary from the name of a block to a predicate on the path of a leaf, such as
        ``{"attention": lambda path: "attn" in path}``. Blocks may overlap.
      **options: further arguments of the measure, such as ``k=5``.

    Returns:
      A dictionary from the name of a block to the result. The weights of a block are a dictionary
      from path to array, as in :func:`restrict`.

    Raises:
      ValueError: if ``blocks`` is empty, or a predicate is true for no leaf.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> params = {"attn": jnp.ones(2), "mlp": jnp.ones(3)}
      >>> loss_fn = lambda p: jnp.sum(p["attn"] ** 2) + 2 * jnp.sum(p["mlp"] ** 2)
      >>> blocks = {name: lambda path, name=name: name in path for name in params}
      >>> found = measures.per_block(
      ...     measures.top_eigenpairs, loss_fn, params, jax.random.key(0), blocks
      ... )
      >>> print({name: f"{pairs.values[0]:.1f}" for name, pairs in found.items()})
      {'attn': '2.0', 'mlp': '4.0'}

    References:
      Zhang et al., `Why Transformers Need Adam: A Hessian Perspective
      <https://arxiv.org/abs/2402.16788>`_, NeurIPS 2024.
    """
    if not blocks:
        raise ValueError(
            'blocks is empty: for example, write blocks={"mlp": lambda path: "mlp" in path}.'
        )
    keys = jax.random.split(key, len(blocks))
    return {
        name: measure(*restrict(loss_fn, params, where), block_key, **options)
        for (name, where), block_key in zip(blocks.items(), keys, strict=True)
    }
