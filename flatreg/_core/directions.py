"""From a direction to an Optax transformation: every method of flatreg goes through here.

A direction is a pure function ``(grad_fn, params, g) -> d``. :func:`from_direction` turns it into
a ``GradientTransformationExtraArgs`` that replaces the gradient, resolves schedules, accepts and
ignores other links' extra arguments, and turns misuse into errors that say what to write instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_scalars, check_update, check_whole, checked_oracle
from flatreg.typing import Direction, Grads, Params, ScalarOrSchedule, StatefulDirection


class DirectionState(NamedTuple):
    """State of a method.

    Attributes:
      count: the number of updates so far, an int32 scalar; None if nothing is scheduled.
      inner: what the direction itself remembers.
    """

    count: jax.Array | None  # type: ignore[assignment]  # hides tuple.count, as Optax does
    inner: optax.OptState


def from_direction(
    direction: Direction, **scalars: ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Makes an Optax transformation of a direction: a new method in ten lines.

    Args:
      direction: a pure function ``direction(grad_fn, params, g, **scalars) -> d``, where ``g`` is
        the gradient that came down the chain, ``grad_fn(params)`` the gradient of the same loss on
        the same batch, and ``d`` what goes on down the chain. All three are trees shaped like
        ``params``; ``d`` is cast to the parameters' dtypes.
      **scalars: hyperparameters that ``direction`` takes by keyword: numbers, 0-d arrays, or
        schedules, which are evaluated at the step count.

    Returns:
      A transformation whose ``update`` needs ``params`` and the extra argument ``grad_fn``.

    Raises:
      TypeError: if a scalar is none, or if ``grad_fn`` returns anything but a gradient.
      ValueError: if ``params`` or ``grad_fn`` is missing in ``update``, or the tree is masked.

    Examples:
      The extragradient method steps along the gradient after a look ahead:

      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> def extragradient(step_size=0.1):
      ...     def direction(grad_fn, params, g, *, step_size):
      ...         ahead = optax.tree.add_scale(params, -step_size, g)
      ...         return grad_fn(ahead)  # ∇L(θ − h∇L(θ))
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
) -> optax.GradientTransformationExtraArgs:
    r"""Makes an Optax transformation of a direction that remembers something.

    Args:
      init: ``init(params) -> state``; it may read shapes and dtypes, but not values.
      direction: a pure function ``direction(grad_fn, params, g, state, **scalars) -> (d, state)``;
        the state keeps its structure, shapes and dtypes.
      **scalars: as for :func:`from_direction`.

    Returns:
      A transformation whose ``update`` needs ``params`` and the extra argument ``grad_fn``.

    Raises:
      TypeError: if a scalar is none, or if ``grad_fn`` returns anything but a gradient.
      ValueError: if ``params`` or ``grad_fn`` is missing in ``update``, or the tree is masked.

    Examples:
      SAM that perturbs along an average of the gradients:

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


# Not TraceState and ScaleByScheduleState: links whose output is still a gradient have them too.
_OPTIMIZERS = (
    optax.FactoredState,
    optax.ScaleByAdaDeltaState,
    optax.ScaleByAdamState,
    optax.ScaleByAdanState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLBFGSState,
    optax.ScaleByLionState,
    optax.ScaleByNovogradState,
    optax.ScaleByRmsState,
    optax.ScaleByRpropState,
    optax.ScaleByRssState,
    optax.ScaleByRStdDevState,
    optax.ScaleBySM3State,
)


def holds_optimizer(state: optax.OptState) -> bool:
    """Whether an adaptive optimizer is in a chain, as its state tells, not inside of a method."""
    is_known: Any = lambda x: isinstance(x, (DirectionState, *_OPTIMIZERS))  # noqa: E731
    leaves = jax.tree.leaves(state, is_leaf=is_known)
    return any(isinstance(x, _OPTIMIZERS) for x in leaves)


def _name(direction: Callable[..., Any]) -> str:
    """The factory that a direction was written in, or else the direction's own name."""
    return getattr(direction, "__qualname__", "the method").partition(".<locals>")[0]


def _transformation(
    name: str,
    init: Callable[[Params], optax.OptState],
    direction: StatefulDirection,
    scalars: dict[str, ScalarOrSchedule],
) -> optax.GradientTransformationExtraArgs:
    check_scalars(**scalars)
    scheduled = any(callable(value) for value in scalars.values())

    def init_fn(params: Params) -> Any:
        check_whole(name, params)
        return DirectionState(jnp.zeros((), jnp.int32) if scheduled else None, init(params))

    def update_fn(
        updates: Grads,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Any = None,
        **extra: Any,
    ) -> tuple[Grads, Any]:
        del extra  # Other links of the chain may want them.
        check_update(name, updates, params, grad_fn)
        values = {k: v(state.count) if callable(v) else v for k, v in scalars.items()}
        oracle = checked_oracle(name, grad_fn)
        d, inner = direction(oracle, params, updates, state.inner, **values)
        count: Any = optax.safe_increment(state.count) if scheduled else None
        return optax.tree.cast_like(d, params), DirectionState(count, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
