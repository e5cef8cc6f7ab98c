"""The vocabulary: what a gradient oracle, a direction and a Hessian-vector product are."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

Params: TypeAlias = Any
"""A tree of floating-point arrays: the weights θ."""

Grads: TypeAlias = Any
"""A tree shaped like the parameters: a gradient, a direction or a perturbation."""

GradFn: TypeAlias = Callable[[Params], Grads]
"""The oracle θ ↦ ∇L(θ): one loss, one batch, one dropout key."""

Direction: TypeAlias = Callable[..., Grads]
"""``direction(grad_fn, params, g, **scalars) -> d``: what goes down the chain in place of g."""

StatefulDirection: TypeAlias = Callable[..., tuple[Grads, optax.OptState]]
"""``direction(grad_fn, params, g, state, **scalars) -> d, state``."""

Hvp: TypeAlias = Callable[[GradFn, Params], tuple[Grads, Callable[[Grads], Grads]]]
"""``hvp(grad_fn, params) -> (g, v ↦ Hv)``: the signature of :func:`jax.linearize`."""

Scale: TypeAlias = Callable[[Params], Params]
"""``scale(params) -> T``: one factor a weight, or one a leaf; a constant for differentiation."""

ScalarOrSchedule: TypeAlias = float | jax.Array | optax.Schedule
"""A float, a 0-d array, or a function of the step count."""

Scalar: TypeAlias = float | jax.Array
"""A scalar at one step, possibly traced."""
