"""Makes an Optax transformation from a direction. Every method of flatreg is made in this way.

A direction is a pure function ``(grad_fn, params, g) -> d``. :func:`from_direction` turns it into
a ``GradientTransformationExtraArgs`` that replaces the gradient. The transformation evaluates
schedules, ignores extra arguments that are meant for other links of the chain, and raises errors
that show a corrected call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import (
    check_arrays,
    check_direction,
    check_scalars,
    check_state,
    check_unmasked,
    check_update,
    checked_oracle,
    checked_pair,
)
from flatreg._core.tree import computed_once
from flatreg.typing import Direction, Grads, Method, Params, ScalarOrSchedule, StatefulDirection


class DirectionState(NamedTuple):
    """State of a method.

    Attributes:
      count: the number of updates so far, an int32 scalar; None if no hyperparameter is a schedule.
      inner: the state of the direction itself.
    """

    count: jax.Array | None  # type: ignore[assignment]  # hides tuple.count, as Optax does
    inner: optax.OptState


def from_direction(direction: Direction, **scalars: ScalarOrSchedule) -> Method:
    r"""Makes an Optax transformation from a direction: a new method in ten lines.

    Args:
      direction: a pure function ``direction(grad_fn, params, g, **scalars) -> d``. Here ``g`` is
        the incoming gradient, ``grad_fn(params)`` computes the gradient of the same loss on the
        same batch, and ``d`` replaces ``g`` in the chain. ``params``, ``g`` and ``d`` are trees
        with the same structure and shapes. ``d`` is cast to the parameters' dtypes.
      **scalars: hyperparameters that ``direction`` takes as keyword arguments: numbers, 0-d arrays,
        or schedules, which are evaluated at the step count.

    Returns:
      A transformation whose ``update`` needs ``params`` and the extra argument ``grad_fn``.

    Raises:
      TypeError: if a hyperparameter is not a number, 0-d array or schedule; if a leaf of ``params``
        is not an array; in ``update``, if ``grad_fn`` needs more arguments than the parameters or
        does not return a gradient, or if the numbers in ``d`` are not real floating-point numbers.
      ValueError: in ``update``, if ``params`` or ``grad_fn`` is missing, if the tree is masked, or
        if ``d`` has another structure or other shapes than ``params``.

    Examples:
      The extragradient method uses the gradient after a lookahead step:

      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> def extragradient(step_size=0.1):
      ...     def direction(grad_fn, params, g, *, step_size):
      ...         lookahead = optax.tree.add_scale(params, -step_size, g)
      ...         return grad_fn(lookahead)  # ∇L(θ − h∇L(θ))
      ...     return flatreg.from_direction(direction, step_size=step_size)
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> params = jnp.array([1.0, 2.0])
      >>> tx = optax.chain(extragradient(optax.constant_schedule(0.5)), optax.sgd(1.0))
      >>> updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
      >>> print(updates)
      [-0.5 -1. ]
    """

    def stateless(
        grad_fn: Any, params: Params, g: Grads, state: Any, **values: Any
    ) -> tuple[Grads, Any]:
        return direction(grad_fn, params, g, **values), state

    return _transformation(_name(direction), lambda params: optax.EmptyState(), stateless, scalars)


def from_stateful_direction(
    init: Callable[[Params], optax.OptState],
    direction: StatefulDirection,
    **scalars: ScalarOrSchedule,
) -> Method:
    r"""Makes an Optax transformation from a direction that has a state.

    Args:
      init: a function ``init(params) -> state``. It may use the shapes and dtypes of ``params``,
        but not the values.
      direction: a pure function ``direction(grad_fn, params, g, state, **scalars) -> (d, state)``.
        Here ``g`` is the incoming gradient, ``grad_fn(params)`` computes the gradient of the same
        loss on the same batch, and ``d`` replaces ``g`` in the chain. The state must keep its
        structure, shapes and dtypes.
      **scalars: hyperparameters (numbers, 0-d arrays or schedules), as for :func:`from_direction`.

    Returns:
      A transformation whose ``update`` needs ``params`` and the extra argument ``grad_fn``.

    Raises:
      TypeError: if a hyperparameter is not a number, 0-d array or schedule; if a leaf of ``params``
        is not an array; in ``update``, if ``grad_fn`` needs more arguments than the parameters or
        does not return a gradient, if ``direction`` does not return a pair, or if the numbers in
        ``d`` are not real floating-point numbers.
      ValueError: in ``update``, if ``params`` or ``grad_fn`` is missing, if the tree is masked, if
        ``d`` has another structure or other shapes than ``params``, or if the new state has another
        structure, or other shapes or dtypes, than the old one.

    Examples:
      A variant of SAM that perturbs along a moving average of the gradients:

      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> def smooth_sam(rho=0.05, decay=0.9):
      ...     def direction(grad_fn, params, g, average, *, rho):
      ...         average = optax.tree.update_moment(g, average, decay, 1)
      ...         return grad_fn(optax.tree.add_scale(params, rho, average)), average
      ...     return flatreg.from_stateful_direction(optax.tree.zeros_like, direction, rho=rho)
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> params = jnp.array([1.0, 2.0])
      >>> tx = smooth_sam(rho=1.0)
      >>> d, state = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
      >>> print(d)
      [1.1 2.2]
    """
    return _transformation(_name(direction), init, direction, scalars)


# States of adaptive optimizers. TraceState and ScaleByScheduleState are not listed, because
# transformations whose output is still a gradient use them too. The classes are looked up by name,
# because not every version of Optax has all of them.
_OPTIMIZER_STATES = (
    "FactoredState",
    "ScaleByAdaDeltaState",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAmsgradState",
    "ScaleByBeliefState",
    "ScaleByLBFGSState",
    "ScaleByLionState",
    "ScaleByNovogradState",
    "ScaleByRmsState",
    "ScaleByRpropState",
    "ScaleByRssState",
    "ScaleByRStdDevState",
    "ScaleBySM3State",
)


def holds_optimizer(state: optax.OptState) -> bool:
    """Whether the state of a chain contains an adaptive optimizer that is not inside a method."""
    optimizer_states = tuple(getattr(optax, x) for x in _OPTIMIZER_STATES if hasattr(optax, x))

    def is_known(x: Any) -> bool:
        return isinstance(x, (DirectionState, *optimizer_states))

    leaves = jax.tree.leaves(state, is_leaf=is_known)
    return any(isinstance(x, optimizer_states) for x in leaves)


def holds_method(state: optax.OptState) -> bool:
    """Whether the state of a transformation contains that of a method of flatreg."""
    is_method = lambda x: isinstance(x, DirectionState)  # noqa: E731
    return any(map(is_method, jax.tree.leaves(state, is_leaf=is_method)))


def _name(direction: Callable[..., Any]) -> str:
    """The name of the factory that defines the direction, or else the direction's own name."""
    return getattr(direction, "__qualname__", "the method").partition(".<locals>")[0]


def _transformation(
    name: str,
    init: Callable[[Params], optax.OptState],
    direction: StatefulDirection,
    scalars: dict[str, ScalarOrSchedule],
) -> Method:
    check_scalars(**scalars)
    scheduled = any(callable(value) for value in scalars.values())

    def init_fn(params: Params) -> Any:
        check_unmasked(name, params)
        check_arrays(name, params)
        return DirectionState(jnp.zeros((), jnp.int32) if scheduled else None, init(params))

    def update_fn(
        updates: Grads,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Any = None,
        **extra: Any,
    ) -> tuple[Grads, Any]:
        del extra  # for other links of the chain
        check_update(name, updates, params, grad_fn)
        values = {k: v(state.count) if callable(v) else v for k, v in scalars.items()}
        checked = checked_oracle(name, grad_fn)
        oracle = lambda params: computed_once(checked(params))  # noqa: E731
        out = direction(oracle, params, computed_once(updates), state.inner, **values)
        d, inner = checked_pair(name, out)
        check_direction(name, d, params)
        check_state(name, inner, state.inner)
        count: Any = optax.safe_increment(state.count) if scheduled else None
        return optax.tree.cast_like(d, params), DirectionState(count, inner)

    return Method(init_fn, update_fn)
