"""Argument validation. Each error says what is wrong and shows a corrected call.

Checks run when a method is created or while it is traced, so they cost nothing in a compiled step.
Arrays may be traced, so only their shapes and dtypes are checked, never their values.
"""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg.typing import GradFn, Grads, Method, Params, ScalarOrSchedule, Scale

UPDATE = "updates, state = tx.update(grads, state, params, grad_fn=grad_fn)"


def is_number(value: Any) -> bool:
    """Whether ``value`` is a Python or NumPy number, whose value can be checked."""
    return isinstance(value, numbers.Real)


def is_scalar(value: Any) -> bool:
    """Whether ``value`` is a number or a 0-d array. The array may be traced."""
    return is_number(value) or getattr(value, "shape", None) == ()


def check_scalars(**scalars: ScalarOrSchedule) -> None:
    """Checks that each argument is a number, a 0-d array or a schedule."""
    for name, value in scalars.items():
        if not is_scalar(value) and not callable(value):
            raise TypeError(
                f"{name} must be a number, a 0-d array or an optax schedule, got {value!r}: write "
                f"{name}=0.1 or {name}=optax.linear_schedule(0.0, 0.1, 1000)."
            )


def check_scalar(example: float, **scalars: Any) -> None:
    """Checks that each argument is a number or a 0-d array; ``example`` is shown in the error."""
    for name, value in scalars.items():
        if not is_scalar(value):
            raise TypeError(
                f"{name} must be a number or a 0-d array, got {value!r}: write {name}={example}."
            )


def check_nonnegative(**scalars: Any) -> None:
    """Checks that each argument that is a number is finite and at least 0."""
    check_between(0, math.inf, **scalars)


def check_between(least: float, most: float, **scalars: Any) -> None:
    """Checks that each argument that is a number is finite and in [least, most]."""
    for name, value in scalars.items():
        if is_number(value) and not (least <= value <= most and math.isfinite(value)):
            valid = f"finite and at least {least}" if most == math.inf else f"in [{least}, {most}]"
            raise ValueError(f"{name} must be {valid}, got {value}.")


def check_period(**scalars: Any) -> None:
    """Checks that each argument is a scalar and, if it is a number, a positive integer."""
    check_scalar(10, **scalars)
    check_between(1, math.inf, **scalars)
    for name, value in scalars.items():
        if is_number(value) and value % 1:
            raise ValueError(
                f"{name} must be a whole number, got {value}: for example, write {name}=10."
            )


def check_function(name: str, value: Any, form: str) -> None:
    """Checks that a static argument is a function or None.

    ``optax.inject_hyperparams`` turns arguments into arrays unless they are declared static, so the
    error for a scalar explains ``static_args``.
    """
    if value is not None and not callable(value):
        correction = static_args(name) if is_scalar(value) else f"Pass {form} as {name}."
        raise TypeError(f"{name} must be {form} or None, got {value!r}. {correction}")


def check_scale(scale: Scale | None) -> None:
    """Checks that a method's ``scale`` is a function or None."""
    check_function("scale", scale, "a function params -> T")


def static_args(name: str) -> str:
    """Tells the user how to keep ``optax.inject_hyperparams`` from converting an argument."""
    return (
        "optax.inject_hyperparams treats every function as a schedule and every number as an "
        "array. If you use it, declare this argument as static: "
        f"optax.inject_hyperparams(method, static_args={name!r})."
    )


def check_key(key: Any, call: str) -> None:
    """Checks that ``key`` is a single random key, typed or raw."""
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key must be one random key, got {key!r}: write {call}.") from error


def check_unmasked(name: str, tree: Params) -> None:
    """Checks that ``optax.masked`` or ``optax.partition`` has not removed leaves from the tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in leaves):
        raise ValueError(
            f"{name} got a masked tree (from optax.masked or optax.partition), but its gradient "
            "oracle needs all parameters. Put the method first in the chain and mask only what "
            "follows it: optax.chain(method, optax.masked(optimizer, mask)). To perturb only some "
            "leaves, pass a scale to the method: scale=lambda params: <a tree with 1.0 for these "
            "leaves and 0.0 for the others>, or scale=flatreg.on(lambda path: 'kernel' in path)."
        )


def checked_method(name: str, method: Any) -> Method:
    """Returns the method, after checking that it is a transformation and not a factory."""
    if not (hasattr(method, "init") and hasattr(method, "update")):
        raise TypeError(
            f"{name} takes a method, got {method!r}: pass the result of a call such as "
            "flatreg.sam(0.05)."
        )
    return optax.with_extra_args_support(method)


def check_update(name: str, updates: Grads, params: Params | None, grad_fn: Any) -> None:
    """Checks the arguments of ``update``: the gradient, the parameters and the oracle."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: write {UPDATE}.")
    if grad_fn is None:
        raise ValueError(
            f"{name} needs the gradient oracle: write {UPDATE}, where loss, grads, grad_fn = "
            "flatreg.value_and_grad_fn(loss_fn)(params, batch), or grad_fn = lambda params: "
            "jax.grad(loss_fn)(params, batch)."
        )
    if not callable(grad_fn):
        raise TypeError(f"{name} needs grad_fn to be a function, got {grad_fn!r}: write {UPDATE}.")
    check_unmasked(name, params)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError(
            f"{name} needs real parameters, because the ascent direction of a complex gradient is "
            "its conjugate. Train the pair (w.real, w.imag) and build the complex weights inside "
            "the loss: w = jax.lax.complex(real, imag)."
        )
    if any(x.dtype == jax.dtypes.float0 for x in jax.tree.leaves(updates) if hasattr(x, "dtype")):
        raise TypeError(
            f"{name} got a gradient with respect to integers: keep integers out of params, and "
            "pass them to the loss as another argument."
        )
    if not alike(updates, params):
        raise ValueError(
            f"{name} needs a gradient shaped like params, {jax.tree.structure(params)}, but got "
            f"{jax.tree.structure(updates)}: write {UPDATE} and pass only the gradient."
        )


def alike(tree: Any, params: Params) -> bool:
    """Whether both trees have the same structure and shapes."""
    structures: Any = jax.tree.structure(tree), jax.tree.structure(params)
    shapes = [[np.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
    return bool(structures[0] == structures[1]) and shapes[0] == shapes[1]


def checked_oracle(name: str, grad_fn: GradFn) -> GradFn:
    """Returns the oracle with checks that it takes only params and returns a gradient."""

    def oracle(params: Params) -> Grads:
        try:
            grads = grad_fn(params)
        except TypeError as error:
            if missing := _missing_arguments(grad_fn):
                raise OracleError(_oracle_takes_params_only(name, missing)) from error
            raise
        if alike(grads, params):
            return grads
        if isinstance(grads, tuple):
            correction = (
                "It returns a tuple. Keep only the gradient, without the value or the auxiliary "
                "output: grad_fn=lambda params: jax.grad(loss_fn, has_aux=True)(params, batch)[0]. "
                "Or use the grad_fn that flatreg.value_and_grad_fn(loss_fn, has_aux=True) returns."
            )
        else:
            correction = "Write grad_fn=lambda params: jax.grad(loss_fn)(params, batch)."
        raise OracleError(
            f"{name} needs grad_fn(params) to return a gradient shaped like params, "
            f"{jax.tree.map(np.shape, params)}, but got {jax.tree.map(np.shape, grads)}. "
            f"{correction}"
        )

    return oracle


class OracleError(TypeError):
    """``grad_fn`` is not a function from the parameters to a gradient."""


def _missing_arguments(grad_fn: Callable[..., Any]) -> list[str]:
    """The names of the required arguments that the call ``grad_fn(params)`` does not provide."""
    try:
        _, *others = inspect.signature(grad_fn).parameters.values()
    except (TypeError, ValueError):  # The signature is unknown or empty.
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in others if p.default is p.empty and p.kind not in variadic]


def _oracle_takes_params_only(name: str, missing: list[str]) -> str:
    values = ["0" if x in ("step", "count", "i", "t", "_") else x for x in missing]
    return (
        f"{name} calls grad_fn(params), but this grad_fn also requires {', '.join(missing)}. "
        "optax.contrib.sam calls grad_fn(params, step); flatreg passes only the parameters. Write "
        f"grad_fn=lambda params: grad_fn(params, {', '.join(values)}), or use the grad_fn that "
        "flatreg.value_and_grad_fn(loss_fn)(params, batch) returns."
    )


def checked_scale(scale: Scale | None, params: Params) -> Params | None:
    """Returns T = scale(params), after checking its structure and shapes, or None for T = 1."""
    if scale is None:
        return None
    factors = scale(params)
    correction = (
        "for example, write scale=lambda params: jax.tree.map(lambda w: jnp.abs(w) + 0.01, params)."
    )
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(factors)
    if expected != got:
        raise ValueError(
            f"scale(params) must have the structure of params, {expected}, but has {got}: "
            f"{correction}"
        )

    def check_leaf(factor: Any, weight: Any) -> None:
        if jnp.shape(factor) not in ((), jnp.shape(weight)):
            raise ValueError(
                f"a leaf of scale(params) has shape {jnp.shape(factor)} where the parameter has "
                f"shape {jnp.shape(weight)}. Return one factor per weight or one factor per leaf: "
                f"{correction}"
            )

    jax.tree.map(check_leaf, factors, params)
    return factors
