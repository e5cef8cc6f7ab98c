"""Errors for a chain whose transformations are in the wrong order.

A method replaces the gradient, so the optimizer must come after it in the chain, and no wrapper
around it may accumulate gradients. The checks use only the types of the states inside the optimizer
state. They can identify adaptive optimizers, but not ``optax.sgd``, because its state type is not
unique.
"""

from typing import Any

import optax

from flatreg._core.directions import DirectionState, holds_optimizer
from flatreg._core.observe import ObservedState
from flatreg._flax.opt_states import states_of_type

_CORRECT_CHAIN = "optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1))"


def check_transformation(tx: Any) -> None:
    """Raise an error if ``tx`` is not an Optax transformation.

    Args:
      tx: what the user passed as the optimizer.

    Raises:
      TypeError: if it has no ``init`` or no ``update``.
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}: write {_CORRECT_CHAIN}.")


def check_order(opt_state: optax.OptState) -> None:
    """Raise an error if the chain that made this state has a method in the wrong place.

    Args:
      opt_state: the optimizer state of the chain.

    Raises:
      ValueError: if the chain ends in a method, if an adaptive optimizer comes before a method, or
        if ``optax.MultiSteps`` is wrapped around a method.
    """
    states = _states_of_chain(opt_state)
    if states and isinstance(states[-1], DirectionState | ObservedState):
        raise ValueError(
            "tx ends in a method, whose output is a gradient. Adding it to the parameters would "
            f"increase the loss. Put the optimizer after the method: {_CORRECT_CHAIN}."
        )
    optimizers = [i for i, state in enumerate(states) if holds_optimizer(state)]
    if optimizers and _states_of_methods(states[optimizers[0] + 1 :]):
        raise ValueError(
            "tx has an optimizer before a method, which would replace the optimizer's updates by a "
            f"gradient. Put the optimizer after the method: {_CORRECT_CHAIN}."
        )
    if any(map(_states_of_methods, states_of_type(optax.MultiStepsState, opt_state))):
        raise ValueError(
            "optax.MultiSteps passes its averaged gradient to a method, but the method's grad_fn "
            "belongs to the last microbatch only. Remove MultiSteps and write "
            "make_train_step(loss_fn, microbatches=k)."
        )


def _states_of_methods(opt_state: optax.OptState) -> list[Any]:
    return states_of_type(DirectionState | ObservedState, opt_state)


def _states_of_chain(opt_state: optax.OptState) -> list[optax.OptState]:
    """Return the state of each transformation in a chain.

    Nested chains are flattened, and wrappers that have an ``inner_state`` (``flatreg.every``,
    ``optax.inject_hyperparams``, ``optax.apply_if_finite``) are replaced by what they wrap.
    """
    if isinstance(opt_state, dict):  # the state of optax.named_chain
        opt_state = tuple(opt_state.values())
    if type(opt_state) is tuple:
        return [state for part in opt_state for state in _states_of_chain(part)]
    inner = getattr(opt_state, "inner_state", None)
    return [opt_state] if inner is None else _states_of_chain(inner)
