"""Records what a method does to the gradient during training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.batches import ShardedGradFn
from flatreg._core.checks import checked_method
from flatreg._core.tree import computed_once, inner, mix, norm, unit
from flatreg.typing import Grads, Method, Params

try:
    from jax.extend.core import get_opaque_trace_state as get_opaque_trace_state
except ImportError:  # the oldest supported versions of JAX
    from jax.core import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        get_opaque_trace_state as get_opaque_trace_state,
    )


class Observation(NamedTuple):
    """What the last update of an observed method did.

    All fields are float32 scalars. They are NaN before the first update.

    Attributes:
      grad_norm: ‖g‖, the norm of the incoming gradient.
      direction_norm: ‖d‖, the norm of the direction that replaces it.
      perturbation_norm: ‖ε‖, the largest distance between the parameters and the points at which
        the oracle was called, after rounding to the parameters' dtypes. NaN if one of the points
        cannot be observed.
      cosine: cos(g, d) = ⟨g, d⟩ / (‖g‖‖d‖), or zero if g or d is zero.
    """

    grad_norm: jax.Array
    direction_norm: jax.Array
    perturbation_norm: jax.Array
    cosine: jax.Array


class ObservedState(NamedTuple):
    """State of an observed method.

    Attributes:
      observation: the :class:`Observation` of the last update.
      inner: the state of the method.
    """

    observation: Observation
    inner: optax.OptState


def observe(method: Method) -> Method:
    r"""Records ‖g‖, ‖d‖, ‖ε‖ and cos(g, d) of the last update in the state of a method.

    If the method calls the oracle inside a ``lax.cond``, a ``vmap`` or a linearization, that point
    cannot be read from outside, and ‖ε‖ is NaN. This is the case if ``method`` is made by
    :func:`every`, :func:`after`, :func:`randomly` or :func:`per_shard`, and for methods that use
    exact Hessian-vector products. To see the last step on which a method was applied, observe the
    inner method: ``every(observe(sam(0.05)), 5)``. With ``jax_debug_nans``, this NaN stops the run,
    and so do the NaNs before the first update if ``init`` is jitted.

    Args:
      method: the transformation to observe. Its output does not change.

    Returns:
      A transformation whose state contains an :class:`Observation`. Read it with
      ``optax.tree.get(opt_state, "cosine")``. The train steps of :mod:`flatreg.linen` and
      :mod:`flatreg.nnx` add it to their metrics.

    Raises:
      TypeError: if ``method`` is not a transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2)
      >>> w = jnp.array([1.0, 1.0])
      >>> tx = optax.chain(flatreg.observe(flatreg.sam(0.1)), optax.sgd(0.1))
      >>> _, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print({name: round(float(x), 4) for name, x in state[0].observation._asdict().items()})
      {'grad_norm': 3.1623, 'direction_norm': 3.4428, 'perturbation_norm': 0.1, 'cosine': 0.9998}
    """
    method = checked_method("observe", method)

    def init(params: Params) -> Any:
        nothing = [_nan() for _ in Observation._fields]
        return ObservedState(Observation(*nothing), method.init(params))

    def update(
        updates: Grads, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> tuple[Grads, Any]:
        updates = computed_once(updates)
        watched, distance = _watch(grad_fn, params)
        d, inner_state = method.update(updates, state.inner, params, grad_fn=watched, **extra)
        cosine = inner(unit(updates), unit(d))
        seen = [x.astype(jnp.float32) for x in (norm(updates), norm(d), distance(), cosine)]
        return d, ObservedState(Observation(*seen), inner_state)

    return Method(init, update)


def _nan() -> jax.Array:
    """A NaN at which ``jax_debug_nans`` does not stop."""
    with jax.debug_nans(False):
        return jnp.full((), jnp.nan, jnp.float32)


def _watch(grad_fn: Any, params: Params) -> tuple[Any, Callable[[], jax.Array]]:
    """Returns the watched oracle, and a function for its largest distance from ``params``."""
    unknown = _nan()
    if not callable(grad_fn) or isinstance(grad_fn, ShardedGradFn):
        return grad_fn, lambda: unknown
    outside = get_opaque_trace_state()
    distances: list[jax.Array] = []

    @functools.wraps(grad_fn)  # keeps the signature, which the error messages use
    def watched(point: Params) -> Grads:
        here = get_opaque_trace_state() == outside
        distances.append(norm(mix((1, point), (-1, params))) if here else unknown)
        return grad_fn(point)

    return watched, lambda: functools.reduce(jnp.maximum, distances, jnp.zeros(()))
