"""What bad input is told: what is wrong, then the call that mends it. Nothing here is traced."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg.typing import GradFn, Grads, Params, ScalarOrSchedule

UPDATE = "updates, state = tx.update(grads, state, params, grad_fn=grad_fn)"


def is_number(value: Any) -> bool:
    """Whether it is a Python or NumPy number, which can be checked; arrays may be traced."""
    return isinstance(value, numbers.Real)


def is_scalar(value: Any) -> bool:
    """Whether it is a number or a 0-d array, which may be traced."""
    return is_number(value) or getattr(value, "shape", None) == ()


def check_scalars(**scalars: ScalarOrSchedule) -> None:
    """Each is a number, a 0-d array or a schedule."""
    for name, value in scalars.items():
        if not is_scalar(value) and not callable(value):
            raise TypeError(
                f"{name} must be a number, a 0-d array or an optax schedule, got {value!r}: write "
                f"{name}=0.1 or {name}=optax.linear_schedule(0.0, 0.1, 1000)."
            )


def check_scalar(example: float, **scalars: Any) -> None:
    """Each is a number or a 0-d array."""
    for name, value in scalars.items():
        if not is_scalar(value):
            raise TypeError(
                f"{name} must be a number or a 0-d array, got {value!r}: write {name}={example}."
            )


def check_nonnegative(**scalars: Any) -> None:
    """Each that is a number is at least 0."""
    check_between(0, math.inf, **scalars)


def check_between(least: float, most: float, **scalars: Any) -> None:
    """Each that is a number lies in [least, most]."""
    for name, value in scalars.items():
        if is_number(value) and not (least <= value <= most and math.isfinite(value)):
            valid = f"finite and at least {least}" if most == math.inf else f"in [{least}, {most}]"
            raise ValueError(f"{name} must be {valid}, got {value}.")


def check_period(**scalars: Any) -> None:
    """Each that is a number is whole and at least 1."""
    check_scalar(10, **scalars)
    check_between(1, math.inf, **scalars)
    for name, value in scalars.items():
        if is_number(value) and value % 1:
            raise ValueError(f"{name} must be a whole number, got {value}: {name}=10, say.")


def check_function(name: str, value: Any, form: str) -> None:
    """A static argument is a function or None; injected, it would arrive as a number."""
    if value is not None and not callable(value):
        mend = static_args(name) if is_scalar(value) else f"Write {name}={form}."
        raise TypeError(f"{name} must be {form} or None, got {value!r}. {mend}")


def static_args(name: str) -> str:
    """How to keep an argument out of ``optax.inject_hyperparams``'s hands."""
    return (
        "Under optax.inject_hyperparams, which takes every function for a schedule and every "
        f"number for an array, name it: optax.inject_hyperparams(method, static_args={name!r})."
    )


def check_key(key: Any, call: str) -> None:
    """A typed key or a raw one, and one only."""
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key must be one random key, got {key!r}: write {call}.") from error


def check_whole(name: str, tree: Params) -> None:
    """No leaf has been masked out of the tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in leaves):
        raise ValueError(
            f"{name} got a masked tree (from optax.masked or optax.partition), but its gradient "
            "oracle needs every parameter. Put it first in the chain, outside of the mask: "
            "optax.chain(method, optax.masked(optimizer, mask)). To perturb some leaves only, "
            "give the method scale=lambda params: <1.0 for these leaves, 0.0 for the others>."
        )


def checked_method(name: str, method: Any) -> optax.GradientTransformationExtraArgs:
    """The method, which is a transformation, not the function that makes one."""
    if not (hasattr(method, "init") and hasattr(method, "update")):
        raise TypeError(
            f"{name} takes a method, got {method!r}: call what makes it, flatreg.sam(0.05), say."
        )
    return optax.with_extra_args_support(method)


def check_update(name: str, updates: Grads, params: Params | None, grad_fn: Any) -> None:
    """``update`` was given a gradient, the parameters and the oracle."""
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
    check_whole(name, params)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError(
            f"{name} needs real parameters, for ascent along a complex gradient would need its "
            "conjugate: train (w.real, w.imag) and let the loss put them together, "
            "w = jax.lax.complex(real, imag)."
        )
    if any(x.dtype == jax.dtypes.float0 for x in jax.tree.leaves(updates) if hasattr(x, "dtype")):
        raise TypeError(
            f"{name} got a gradient with respect to integers: keep them out of params, and hand "
            "them to the loss beside it."
        )
    if not alike(updates, params):
        raise ValueError(
            f"{name} needs a gradient shaped like params, {jax.tree.structure(params)}, but got "
            f"{jax.tree.structure(updates)}: write {UPDATE} with the gradient alone."
        )


def alike(tree: Any, params: Params) -> bool:
    """Whether both have the same structure and shapes."""
    structures: Any = jax.tree.structure(tree), jax.tree.structure(params)
    shapes = [[np.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
    return bool(structures[0] == structures[1]) and shapes[0] == shapes[1]


def checked_oracle(name: str, grad_fn: GradFn) -> GradFn:
    """The oracle, which raises where it returns anything but a gradient."""

    def oracle(params: Params) -> Grads:
        grads = grad_fn(params)
        if alike(grads, params):
            return grads
        if isinstance(grads, tuple):
            hint = "It returns a tuple: drop the auxiliary output or the value with "
            hint += "grad_fn=lambda params: jax.grad(loss_fn, has_aux=True)(params, batch)[0], or "
            hint += (
                "take the grad_fn that flatreg.value_and_grad_fn(loss_fn, has_aux=True) returns."
            )
        else:
            hint = "Write grad_fn=lambda params: jax.grad(loss_fn)(params, batch)."
        raise TypeError(
            f"{name} needs grad_fn(params) to return a gradient shaped like params, "
            f"{jax.tree.map(np.shape, params)}, but got {jax.tree.map(np.shape, grads)}. {hint}"
        )

    return oracle


def checked_scale(scale: Callable[[Params], Params] | None, params: Params) -> Params | None:
    """T = scale(params), one factor a weight or one a leaf."""
    if scale is None:
        return None
    factors = scale(params)
    mend = "write scale=lambda params: jax.tree.map(lambda w: jnp.abs(w) + 0.01, params), say."
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(factors)
    if expected != got:
        raise ValueError(
            f"scale(params) must have the structure of params, {expected}, but has {got}: {mend}"
        )

    def check_leaf(factor: Any, weight: Any) -> None:
        if jnp.shape(factor) not in ((), jnp.shape(weight)):
            raise ValueError(
                f"a leaf of scale(params) has shape {jnp.shape(factor)} where the parameter has "
                f"{jnp.shape(weight)}: give one factor a weight or one a leaf; {mend}"
            )

    jax.tree.map(check_leaf, factors, params)
    return factors
