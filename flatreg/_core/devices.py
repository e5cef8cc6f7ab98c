"""Averages a pass over the devices of ``jax.pmap`` and ``jax.shard_map``.

Each device computes the loss and the gradient of its own part of the batch, and both are averaged:
L = (1/n) Σᵢ Lᵢ over n devices. The parameters are the same on all devices. How JAX differentiates
such an average depends on whether it knows this:

- In ``shard_map`` with ``check_vma=True``, the type of an array says over which axes it varies.
  Parameters that do not vary would get a gradient that is summed over the devices already. A pass
  first declares them as varying, so that its gradient is the device's own. The derivative of that
  declaration is the sum that the transposed average needs.
- In ``pmap`` and with ``check_vma=False``, JAX does not know that the parameters are the same. The
  transpose of θ ↦ (1/n) Σᵢ ∇Lᵢ(θ) would multiply by the Hessian of the device's own loss. A pass
  first applies the identity, with a tangent that is averaged. Tangents are the same on all devices,
  so their average changes nothing in forward mode, and its transpose averages the products.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.batches import Args, Evaluate, PerPart, ValueAndAux
from flatreg._core.tree import named_leaves
from flatreg.typing import Grads, Params

AxisName: TypeAlias = str | tuple[str, ...]


def check_axis_name(axis_name: Any) -> None:
    """Checks that the axis name is a name or a tuple of names."""
    names = axis_name if isinstance(axis_name, tuple) and axis_name else (axis_name,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name must be a string or a tuple of strings, got {axis_name!r}: for example, "
            "write axis_name='data'."
        )


def averaged(evaluate: Evaluate, axis_name: AxisName) -> Evaluate:
    """The pass, averaged over the devices: the value, the gradient and floating leaves of aux."""

    def run(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        (value, aux), grads = evaluate(_on_each_device(params, axis_name), args)
        value, grads = jax.lax.pmean((value, grads), axis_name)
        mean = functools.partial(_mean_if_floating, axis_name=axis_name)
        aux = jax.tree.map(mean, aux, is_leaf=lambda x: isinstance(x, PerPart))
        return (value, aux), grads

    return run


def averaged_gradient(
    gradient: Callable[[Params, Any], Grads], axis_name: AxisName
) -> Callable[[Params, Any], Grads]:
    """The function ``(params, args) -> gradient``, averaged over the devices."""
    return lambda params, args: jax.lax.pmean(
        gradient(_on_each_device(params, axis_name), args), axis_name
    )


def check_replicated(params: Params, axis_name: AxisName) -> None:
    """Checks that the axis exists and that no parameter is known to vary over it."""
    try:
        jax.lax.axis_index(axis_name)
    except NameError as error:
        raise ValueError(
            f"value_and_grad_fn(..., axis_name={axis_name!r}) was called where no axis has this "
            f"name. Call the step inside jax.pmap(step, axis_name={axis_name!r}), or inside "
            "jax.shard_map over a mesh with such an axis. Under jax.jit with sharded arrays, leave "
            "axis_name out: the average is taken over the whole batch anyway."
        ) from error
    varying = [path for path, x in named_leaves(params).items() if _varies_over(x, axis_name)]
    if varying:
        raise ValueError(
            f"axis_name={axis_name!r} needs parameters that are the same on all devices, but these "
            f"leaves vary over the axis: {', '.join(map(repr, varying[:5]))}. Pass the parameters "
            "to shard_map with in_specs=P(), and do not apply jax.lax.pcast to them. If they are "
            "sharded over the axis, leave axis_name out and average the loss inside loss_fn with "
            "jax.lax.pmean."
        )


def _on_each_device(params: Params, axis_name: AxisName) -> Params:
    """The parameters, such that their gradient is that of the device's own loss."""
    if _varying_axes(jax.lax.axis_index(axis_name)):  # check_vma=True
        return jax.tree.map(lambda x: _as_varying(x, axis_name), params)
    return jax.tree.map(lambda x: _with_averaged_tangent(axis_name, x), params)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_averaged_tangent(axis_name: AxisName, x: jax.Array) -> jax.Array:
    """The identity, with a tangent that is averaged over the devices."""
    return x


@_with_averaged_tangent.defjvp
def _(axis_name: AxisName, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[0], jax.lax.pmean(tangents[0], axis_name)


def _as_varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The same array, declared as varying over the axes."""
    missing = tuple(name for name in _names(axis_name) if name not in _varying_axes(x))
    if not missing:
        return x
    lax: Any = jax.lax  # JAX before 0.8 has pvary only.
    declared: jax.Array = (
        lax.pcast(x, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, missing)
    )
    return declared


def _varies_over(x: Any, axis_name: AxisName) -> bool:
    return bool(_varying_axes(x) & set(_names(axis_name)))


def _varying_axes(x: Any) -> frozenset[Any]:
    """The axes of ``shard_map`` over which the type of the array varies."""
    kind: Any = jax.typeof(x)
    axes: frozenset[Any] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return axes


def _names(axis_name: AxisName) -> tuple[str, ...]:
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def _mean_if_floating(x: Any, axis_name: AxisName) -> Any:
    if isinstance(x, PerPart):
        return x
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jax.lax.pmean(x, axis_name) if jnp.issubdtype(dtype, jnp.inexact) else x
