"""What a method does to the gradient, read off while training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._tree import inner, norm, unit
from flatreg._types import Grads, Params


class Observation(NamedTuple):
    """What the last update of an observed method did; NaN before the first. Float32 scalars.

    Attributes:
      grad_norm: ‖g‖, the norm of the gradient that came down the chain.
      direction_norm: ‖d‖, the norm of what goes on in its place.
      cosine: cos(g, d) = ⟨g, d⟩ / (‖g‖‖d‖), zero where one of them is zero.
    """

    grad_norm: jax.Array
    direction_norm: jax.Array
    cosine: jax.Array


class ObservedState(NamedTuple):
    """State of an observed method: its own, and the last observation."""

    observation: Observation
    inner: optax.OptState


def observe(
    method: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    r"""The method, with ‖g‖, ‖d‖ and cos(g, d) of its last update in its state.

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
      >>> tx = optax.chain(flatreg.observe(flatreg.sam(0.0)), optax.sgd(0.1))
      >>> _, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(f"{optax.tree.get(state, 'grad_norm'):.4f}, {optax.tree.get(state, 'cosine'):.2f}")
      3.1623, 1.00
    """

    def init(params: Params) -> Any:
        unseen = [jnp.full((), jnp.nan, jnp.float32) for _ in Observation._fields]
        return ObservedState(Observation(*unseen), method.init(params))

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        d, inner_state = method.update(updates, state.inner, params, **extra)
        cosine = inner(unit(updates), unit(d))
        seen = [x.astype(jnp.float32) for x in (norm(updates), norm(d), cosine)]
        return d, ObservedState(Observation(*seen), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
