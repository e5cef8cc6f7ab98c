"""Types of the public API: parameters, gradient oracles, directions and Hessian-vector products.

Annotate your own functions with these types, and a type checker compares them with what flatreg
expects. The classes below are protocols: any function with a matching signature is an instance, so
there is nothing to inherit from.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import optax

__all__ = [
    "Direction",
    "GradFn",
    "Grads",
    "Hvp",
    "Method",
    "Params",
    "Predicate",
    "Sampler",
    "Scalar",
    "ScalarOrSchedule",
    "Scale",
    "StatefulDirection",
]

Params: TypeAlias = Any
"""A tree of floating-point arrays: the weights θ."""

Grads: TypeAlias = Any
"""A tree with the structure and shapes of the parameters: a gradient, direction or perturbation."""

Scalar: TypeAlias = float | jax.Array
"""A number or a 0-d array: the value of a hyperparameter at one step. It may be traced."""

ScalarOrSchedule: TypeAlias = float | jax.Array | optax.Schedule
"""A number, a 0-d array, or an Optax schedule: a function from the step count to a scalar."""

Method: TypeAlias = optax.GradientTransformationExtraArgs
"""A method such as :func:`flatreg.sam`: a transformation whose ``update`` takes ``grad_fn``."""

Predicate: TypeAlias = Callable[[str], bool]
"""A function from the path of a leaf, such as ``"params/Dense_0/kernel"``, to a bool."""


class GradFn(Protocol):
    """A gradient oracle: ``grad_fn(params) -> ∇L(params)``.

    Every call uses the same loss, the same batch and the same dropout key. The parameters are its
    only argument, whereas ``optax.contrib.sam`` calls ``grad_fn(params, step)``.
    """

    def __call__(self, params: Params, /) -> Grads:
        """Returns the gradient of the loss at ``params``."""
        ...


class Direction(Protocol):
    """What a method computes: ``direction(grad_fn, params, g, **scalars) -> d``.

    A pure function of the gradient oracle ``grad_fn``, the parameters θ and the incoming gradient
    ``g``, which is the output of the previous link of the chain. The result ``d`` replaces ``g`` in
    the chain. Hyperparameters are keyword arguments. :func:`flatreg.from_direction` makes a method
    from a direction.
    """

    def __call__(
        self, grad_fn: GradFn, params: Params, g: Grads, /, *args: Any, **scalars: Any
    ) -> Grads:
        """Returns the direction d, a tree like ``params``."""
        ...


class StatefulDirection(Protocol):
    """A direction with a state: ``direction(grad_fn, params, g, state, **scalars) -> d, state``.

    It takes and returns the state in addition to the arguments and the result of
    :class:`Direction`. :func:`flatreg.from_stateful_direction` makes a method from it.
    """

    def __call__(
        self,
        grad_fn: GradFn,
        params: Params,
        g: Grads,
        state: Any,
        /,
        *args: Any,
        **scalars: Any,
    ) -> tuple[Grads, Any]:
        """Returns the direction d, a tree like ``params``, and the new state."""
        ...


class Hvp(Protocol):
    """A way to compute Hessian-vector products: ``hvp(grad_fn, params) -> g, v ↦ Hv``.

    This is the signature of :func:`jax.linearize`, because the Hessian is the linearization of the
    gradient. Examples are :func:`flatreg.exact_hvp` and :func:`flatreg.finite_difference_hvp`.
    """

    def __call__(
        self, grad_fn: GradFn, params: Params, /
    ) -> tuple[Grads, Callable[[Grads], Grads]]:
        """Returns the gradient at ``params`` and the function v ↦ Hv on trees like ``params``."""
        ...


class Scale(Protocol):
    """A scale of the perturbation: ``scale(params) -> T``, evaluated at every step.

    T has the structure of the parameters and holds one factor per weight or one factor per leaf.
    Methods treat T as a constant in differentiation. :func:`flatreg.on` makes a scale from a
    predicate on the path of a leaf.
    """

    def __call__(self, params: Params, /) -> Params:
        """Returns the factors T for the parameters ``params``."""
        ...


class Sampler(Protocol):
    """A noise distribution: ``sampler(key, shape, dtype) -> z``, such as ``jax.random.normal``."""

    def __call__(self, key: jax.Array, shape: Any, dtype: Any, /) -> jax.Array:
        """Returns an array of independent draws."""
        ...
