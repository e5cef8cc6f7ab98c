"""The parameters without the shift that a one-gradient wrapper keeps on them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import mix
from flatreg.typing import Params


def eval_params(opt_state: optax.OptState, params: Params) -> Params:
    """Returns the clean parameters θ for evaluation, given the shifted ones θ + ε.

    Between two steps of :func:`flatreg.revisit`, :func:`flatreg.momentum_sam` or
    :func:`flatreg.previous_gradient_sam`, the parameters are at the point where the next gradient
    is computed. Use the clean parameters to evaluate, to average and to export the model, and keep
    the shifted ones for training and for checkpoints.

    Args:
      opt_state: the state of the wrapper, or of a chain that contains it.
      params: the parameters after the same step.

    Returns:
      The clean parameters, in the structure and the dtypes of ``params``.

    Raises:
      ValueError: if ``opt_state`` does not contain the state of exactly one wrapper, or if the
        wrapper was initialized for other parameters.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.previous_gradient_sam(optax.sgd(0.5), rho=5.0)
      >>> opt_state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, opt_state = tx.update(grad_fn(w), opt_state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     print(w, flatreg.eval_params(opt_state, w))
      [4.5 6. ] [1.5 2. ]
      [2.25 3.  ] [-0.75 -1.  ]
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_wrapper)
    wrappers = [node for node in nodes if _is_wrapper(node)]
    if len(wrappers) != 1:
        raise ValueError(
            f"eval_params found {len(wrappers)} states of one-gradient wrappers in opt_state, but "
            "needs exactly one: pass the state of tx = flatreg.revisit(optax.sgd(0.1)), or of "
            "another wrapper, and the parameters after the same step."
        )
    leaves, structure = jax.tree.flatten(params)
    shift = jax.tree.leaves(wrappers[0].shift)
    shapes, expected = ([jnp.shape(x) for x in tree] for tree in (leaves, shift))
    if shapes != expected:
        raise ValueError(
            f"eval_params got parameters of the shapes {shapes}, but the wrapper was initialized "
            f"for {expected}: pass the parameters that the optimizer trains."
        )
    clean = optax.tree.cast_like(mix((1, leaves), (-1, shift)), leaves)
    return jax.tree.unflatten(structure, clean)


def _is_wrapper(node: Any) -> bool:
    return hasattr(node, "shift") and hasattr(node, "inner_state")
