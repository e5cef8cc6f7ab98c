"""What a method does to the gradient, read off while training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.batches import ShardedGradFn
from flatreg._core.checks import checked_method
from flatreg._core.tree import inner, mix, norm, unit
from flatreg.typing import Grads, Params

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # the oldest versions of JAX that are supported
    from jax.core import get_opaque_trace_state


class Observation(NamedTuple):
    """What the last update of an observed method did; NaN before the first. Float32 scalars.

    Attributes:
      grad_norm: ‖g‖, the norm of the gradient that came down the chain.
      direction_norm: ‖d‖, the norm of what goes on in its place.
      perturbation_norm: ‖ε‖, the largest distance from the parameters at which the oracle was
        called, as their dtype rounds it; NaN where it cannot be seen.
      cosine: cos(g, d) = ⟨g, d⟩ / (‖g‖‖d‖), zero where one of them is zero.
    """

    grad_norm: jax.Array
    direction_norm: jax.Array
    perturbation_norm: jax.Array
    cosine: jax.Array


class ObservedState(NamedTuple):
    """State of an observed method: its own, and the last observation."""

    observation: Observation
    inner: optax.OptState


def observe(
    method: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    r"""The method, with ‖g‖, ‖d‖, ‖ε‖ and cos(g, d) of its last update in its state.

    A point at which the oracle is called inside of a ``lax.cond``, a ``vmap`` or a linearization
    does not come out of it, and then ‖ε‖ is NaN: around :func:`every`, :func:`after`,
    :func:`randomly` and :func:`per_shard`, and for methods that take exact Hessian-vector products.
    Observe the method inside, ``every(observe(sam(0.05)), 5)``, to see its last on-step. Under
    ``jax_debug_nans`` this NaN stops the run, and so do those before the first update if ``init``
    is jitted.

    Args:
      method: the transformation to observe; what it returns is untouched.

    Returns:
      A transformation whose state holds an ``observation``: read it by
      ``optax.tree.get(opt_state, "cosine")``. The train steps of :mod:`flatreg.linen` and
      :mod:`flatreg.nnx` put it among their metrics.

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
        unseen = [_nan() for _ in Observation._fields]
        return ObservedState(Observation(*unseen), method.init(params))

    def update(
        updates: Grads, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> tuple[Grads, Any]:
        watched, distance = _watch(grad_fn, params)
        d, inner_state = method.update(updates, state.inner, params, grad_fn=watched, **extra)
        cosine = inner(unit(updates), unit(d))
        seen = [x.astype(jnp.float32) for x in (norm(updates), norm(d), distance(), cosine)]
        return d, ObservedState(Observation(*seen), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _nan() -> jax.Array:
    """NaN on purpose, at which ``jax_debug_nans`` does not stop."""
    with jax.debug_nans(False):
        return jnp.full((), jnp.nan, jnp.float32)


def _watch(grad_fn: Any, params: Params) -> tuple[Any, Callable[[], jax.Array]]:
    """The oracle, and how far from ``params`` it will have been called at most."""
    outside = get_opaque_trace_state()
    unknown = _nan()
    distances: list[jax.Array] = []

    def watched(point: Params) -> Grads:
        here = get_opaque_trace_state() == outside
        distances.append(norm(mix((1, point), (-1, params))) if here else unknown)
        return grad_fn(point)

    if not callable(grad_fn) or isinstance(grad_fn, ShardedGradFn):
        return grad_fn, lambda: unknown
    return watched, lambda: functools.reduce(jnp.maximum, distances, jnp.zeros(()))
