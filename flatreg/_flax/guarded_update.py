"""One update of the chain, skipped as a whole if a pass was not finite.

If any pass of a step gives the method a NaN or an infinity, the step must leave the parameters and
the optimizer state unchanged. The perturbed passes run inside the method, possibly inside a
``lax.cond`` or a ``vmap``, so they cannot report whether they were finite. This is therefore
determined from the result of the update:

1. Every infinity in a gradient is turned into NaN. A later clipping transformation would make an
   infinity finite again, but it keeps a NaN.
2. After ``tx.update``, the step is finite if the updates and the sums in gradient accumulators
   contain no NaN, and no transformation that skips such steps itself (``optax.apply_if_finite``)
   has skipped this one.

:func:`flatreg.revisit` skips such steps itself, because its position in the group of batches must
advance and its shift must change. Its new state and parameters are kept, and the step counts as
skipped.

Transformations whose purpose is to discard values (``optax.zero_nans``, a mask that freezes
weights) also hide a NaN from this test.

Cost: the test stores no additional gradient. The clean gradient is not tested on its own, so XLA
removes its backward pass if the method does not use it. Until the test is complete, both the old
and the new optimizer state must be in memory. Compared with an update without a test, AdamW then
needs memory for two more copies of the parameters. (With a ``lax.cond``, it would be three.)
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import total
from flatreg._flax.opt_states import states_of_type
from flatreg._flax.oracles import transformed_oracle
from flatreg.typing import GradFn, Grads, Params
from flatreg.wrappers import RevisitState


class GuardedUpdate(NamedTuple):
    """The result of :func:`guarded_update`.

    Attributes:
      params: the new parameters, or the old ones if the step was not finite. With
        :func:`flatreg.revisit`, the shift on them changes in any case.
      opt_state: the new optimizer state, or the old one if the step was not finite. With
        :func:`flatreg.revisit`, the position in the group changes in any case.
      finite: whether the step was finite, a boolean scalar.
    """

    params: Params
    opt_state: optax.OptState
    finite: jax.Array


def guarded_update(
    tx: optax.GradientTransformation,
    grads: Grads,
    opt_state: optax.OptState,
    params: Params,
    grad_fn: GradFn | None,
    value: jax.Array | None,
    *,
    skip_nonfinite: bool,
) -> GuardedUpdate:
    """Apply one update of ``tx``, unless a gradient that it uses is not finite.

    Args:
      tx: the Optax chain.
      grads: the gradient of the clean pass, unscaled.
      opt_state: the optimizer state.
      params: the parameters.
      grad_fn: the gradient oracle, if the chain contains a method.
      value: the unscaled loss, if a transformation of the chain uses it.
      skip_nonfinite: False applies every update.

    Returns:
      The new parameters and optimizer state, or the old ones, and whether the step was finite. With
      ``skip_nonfinite=False``, it counts as finite unless the chain itself has skipped it.
    """
    tx = optax.with_extra_args_support(tx)
    extra: dict[str, Any] = {} if value is None else {"value": value}
    if skip_nonfinite:
        grads = _infinity_to_nan(grads)
        grad_fn = grad_fn and transformed_oracle(grad_fn, _infinity_to_nan)
    if grad_fn is not None:
        extra["grad_fn"] = grad_fn
    updates, new_opt_state = tx.update(grads, opt_state, params, **extra)
    finite = ~_skipped_by_chain(new_opt_state)
    new_params = optax.apply_updates(params, updates)
    if skip_nonfinite:
        finite &= all_finite((updates, _accumulated_gradients(new_opt_state)))
        choose = functools.partial(optax.tree.where, finite)
        new_params, new_opt_state = choose(new_params, params), choose(new_opt_state, opt_state)
    for wrapper in states_of_type(RevisitState, new_opt_state):
        finite &= wrapper.last_finite  # It has skipped the step itself, and moved its shift.
    return GuardedUpdate(new_params, new_opt_state, finite)


def nan_if_not_finite(loss: jax.Array, grad_fn: GradFn) -> GradFn:
    """Return an oracle whose gradients are NaN if the clean loss is not finite.

    With this oracle, a step whose clean loss is not finite is skipped even if the method does not
    use the clean gradient.

    Args:
      loss: the loss of the clean pass.
      grad_fn: the gradient oracle.

    Returns:
      The oracle.
    """
    one_or_nan = 1 + 0 * loss

    def spoil(grads: Grads) -> Grads:
        return jax.tree.map(lambda x: x * one_or_nan.astype(x.dtype), grads)

    return transformed_oracle(grad_fn, spoil)


def all_finite(tree: Any) -> jax.Array:
    """Return whether all floating-point leaves of a tree are finite, as a boolean scalar.

    Args:
      tree: a tree of arrays; integer leaves are always finite.

    Returns:
      A boolean scalar, True for an empty tree.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    # 0·x is NaN if x is NaN or infinite. XLA sums floats faster than it compares them.
    return total([(0 * x).astype(jnp.float32) for x in leaves]) == 0


def _accumulated_gradients(opt_state: optax.OptState) -> list[Any]:
    """Return the sums of gradients that transformations accumulate for a later update."""
    return [state.acc_grads for state in states_of_type(optax.MultiStepsState, opt_state)] + [
        state.grad_acc for state in states_of_type(optax.ApplyEvery, opt_state)
    ]


def _skipped_by_chain(opt_state: optax.OptState) -> jax.Array:
    """Return whether a transformation of the chain skipped this step as not finite."""
    skipped = [~state.last_finite for state in states_of_type(optax.ApplyIfFiniteState, opt_state)]
    skipped += [
        state.skip_state["should_skip"]
        for state in states_of_type(optax.MultiStepsState, opt_state)
        if isinstance(state.skip_state, Mapping) and "should_skip" in state.skip_state
    ]
    return jnp.any(jnp.stack([jnp.any(x) for x in skipped] or [jnp.array(False)]))


def _infinity_to_nan(grads: Grads) -> Grads:
    # Unlike jnp.where, a product also makes the tangent NaN, and so the Hessian-vector products.
    return jax.tree.map(lambda g: g * (1 + 0 * g), grads)
