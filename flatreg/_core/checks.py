"""Argument validation. Each error says what is wrong and shows a corrected call.

Checks run when a method is created or while it is traced, so they cost nothing in a compiled step.
Arrays may be traced, so only their shapes and dtypes are checked, never their values.
"""

import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg._core.tree import named_leaves, path_name
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


def checked_base(name: str, base: Any) -> Method:
    """Returns the optimizer that a wrapper gets, after checking that it is a transformation."""
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise TypeError(
            f"{name} wraps an optimizer, got {base!r}: write "
            f"flatreg.{name}(optax.sgd(0.1, momentum=0.9))."
        )
    return optax.with_extra_args_support(base)


def check_wrapped_update(name: str, updates: Grads, params: Params | None) -> None:
    """Checks the arguments of a wrapper's ``update``: the gradient and the parameters."""
    call = "updates, state = tx.update(grads, state, params)"
    if params is None:
        raise ValueError(f"{name} needs the parameters: write {call}.")
    check_arrays(name, params)
    check_real(name, params)
    if not alike(updates, params):
        raise ValueError(
            f"{name} needs a gradient shaped like params, but "
            f"{_difference('params', params, 'the gradient', updates)}: write {call}."
            f"{_about_none(updates, params)}"
        )


def check_whole(**static: Any) -> None:
    """Checks that each static argument is a Python integer of at least 1."""
    for name, value in static.items():
        if not isinstance(value, int | np.integer) or value < 1:
            hint = f" {static_args(name)}" if hasattr(value, "aval") else ""
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {value!r}: for example, write "
                f"{name}=4.{hint}"
            )


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
    check_arrays(name, params)
    check_real(name, params)
    if any(x.dtype == jax.dtypes.float0 for x in jax.tree.leaves(updates) if hasattr(x, "dtype")):
        raise TypeError(
            f"{name} got a gradient with respect to integers: keep integers out of params, and "
            "pass them to the loss as another argument."
        )
    if not alike(updates, params):
        correction = f"write {UPDATE} and pass only the gradient."
        if isinstance(params, optax.LookaheadParams):
            correction = _LOOKAHEAD
        raise ValueError(
            f"{name} needs a gradient shaped like params, but "
            f"{_difference('params', params, 'the gradient', updates)}: "
            f"{correction}{_about_none(updates, params)}{_about_variables(updates, params)}"
        )


_LOOKAHEAD = (
    "params are the LookaheadParams of optax.lookahead, which passes neither the fast parameters "
    "nor grad_fn to a method. Apply the method on its own to the fast parameters, and give its "
    "direction to optax.lookahead: d, state = method.update(grads, state, params.fast, "
    "grad_fn=grad_fn); updates, slow_state = optax.lookahead(optax.sgd(0.1), 5, 0.5).update(d, "
    "slow_state, params)."
)


def check_arrays(name: str, params: Params) -> None:
    """Checks that every leaf of the parameters is an array or a number."""
    others = [path for path, x in named_leaves(params).items() if not _is_array(x)]
    if others:
        raise TypeError(
            f"{name} needs parameters that are arrays, but these leaves are not: "
            f"{_listed(map(repr, others))}. {PARTITION}"
        )


def check_real(name: str, params: Params) -> None:
    """Checks that no leaf of the parameters is complex."""
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError(
            f"{name} needs real parameters, because the ascent direction of a complex gradient is "
            "its conjugate. Train the pair (w.real, w.imag) and build the complex weights inside "
            "the loss: w = jax.lax.complex(real, imag)."
        )


def _leaves_other_than(kind: Any, tree: Any) -> list[str]:
    """The leaves whose dtype is not of this kind, each with its path and dtype."""
    return [
        f"{path!r} ({_dtype(x)})" if path else str(_dtype(x))
        for path, x in named_leaves(tree).items()
        if not jnp.issubdtype(_dtype(x), kind)
    ]


def check_differentiable(name: str, params: Params) -> None:
    """Checks that every leaf of the parameters is an array of floating-point numbers."""
    check_arrays(name, params)
    others = _leaves_other_than(jnp.inexact, params)
    if others:
        raise TypeError(
            f"{name} needs floating-point parameters, but these leaves are not: "
            f"{_listed(others)}. Pass them to the loss as another argument. {PARTITION}"
        )


PARTITION = (
    "For an Equinox model, write params, static = eqx.partition(model, eqx.is_inexact_array), "
    "use params here, and write model = eqx.combine(params, static) inside the loss."
)


def _is_array(x: Any) -> bool:
    return isinstance(x, numbers.Number) or (hasattr(x, "shape") and hasattr(x, "dtype"))


def _dtype(x: Any) -> Any:
    """The dtype that JAX gives to an array, a NumPy array or a Python number."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


def _about_none(tree: Any, params: Params) -> str:
    """Names the leaves of the parameters where the tree is None, and shows the correction."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    nones = [path_name(path) for path, x in leaves if x is None]
    missing = sorted(set(nones) & set(named_leaves(params)))
    if not missing:
        return ""
    return (
        f" It is None at {_listed(map(repr, missing))}, as eqx.filter_grad returns for leaves "
        f"that cannot be differentiated. {PARTITION}"
    )


def _about_variables(tree: Any, params: Params) -> str:
    """Shows the correction if one of the trees holds Variables of Flax NNX and the other arrays."""
    nnx: Any = sys.modules.get("flax.nnx")  # Without NNX, Variables cannot occur.

    def variables(tree: Any) -> bool:
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return any(isinstance(x, nnx.Variable) for x in leaves)

    if nnx is None or variables(tree) == variables(params):
        return ""
    return (
        " One of the two holds nnx.Variables and the other arrays. Write params = "
        "nnx.as_pure(nnx.state(model, nnx.Param)), and apply nnx.as_pure to gradients of nnx.grad "
        "too. Or use flatreg.nnx: loss, grads, grad_fn = "
        "flatreg.nnx.value_and_grad_fn(loss_fn)(model, batch) and "
        "optimizer.update(model, grads, grad_fn=grad_fn)."
    )


def check_vector(v: Any, params: Params) -> None:
    """Checks that the vector of a Hessian-vector product has the structure of the parameters."""
    structures: Any = jax.tree.structure(v), jax.tree.structure(params)
    if structures[0] != structures[1]:
        raise ValueError(
            "a Hessian-vector product needs a vector with the structure of the parameters, but "
            f"{_difference('params', params, 'v', v)}. Write v = jax.tree.map(jnp.ones_like, "
            f"params), for example.{_about_none(v, params)}{_about_variables(v, params)}"
        )


def alike(tree: Any, params: Params) -> bool:
    """Whether both trees have the same structure and shapes."""
    structures: Any = jax.tree.structure(tree), jax.tree.structure(params)
    shapes = [[np.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
    return bool(structures[0] == structures[1]) and shapes[0] == shapes[1]


def check_like(name: str, tree: Any, params: Params) -> None:
    """Checks that a tree has the structure and shapes of the parameters."""
    if not alike(tree, params):
        raise ValueError(
            f"{name} must have the structure and shapes of params, but "
            f"{_difference('params', params, 'the result', tree)}.{_about_none(tree, params)}"
        )


def _difference(
    name: str, tree: Any, other_name: str, other: Any, of: Callable[[Any], Any] = np.shape
) -> str:
    """Says where two trees differ: the leaves, or all shapes if the structures differ.

    Args:
      name: what the first tree is called.
      tree: the tree that is expected.
      other_name: what the second tree is called.
      other: the tree that was found.
      of: the property of the leaves that is compared, such as the shape.
    """
    structures: Any = jax.tree.structure(tree), jax.tree.structure(other)
    if structures[0] != structures[1]:
        return f"{name} has the shapes {_shapes(tree)} and {other_name} {_shapes(other)}"
    pairs = zip(named_leaves(tree).items(), jax.tree.leaves(other), strict=True)
    differing = [(path, of(x), of(y)) for (path, x), y in pairs if of(x) != of(y)]
    return _listed(
        f"{name}{f'[{path!r}]' if path else ''} has {expected} and {other_name} {found}"
        for path, expected, found in differing
    )


def _shapes(tree: Any) -> str:
    """The tree with shapes in place of arrays, as text of limited length."""
    text = str(jax.tree.map(np.shape, tree))
    return text if len(text) <= 500 else f"{text[:500]}…"


def _listed(items: Iterable[str], most: int = 5) -> str:
    """The items as text, of which at most ``most`` are written out."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def check_direction(name: str, d: Any, params: Params) -> None:
    """Checks that a direction returned a tree of real numbers shaped like the parameters."""
    if not alike(d, params):
        correction = (
            "Write return jax.tree.map(function, params, g), where the function returns an array "
            "of the shape of its arguments, or return grad_fn(shifted_params)."
        )
        if isinstance(d, tuple) and not isinstance(params, tuple):
            correction = (
                "If the direction returns d, state, write "
                "flatreg.from_stateful_direction(init, direction). Otherwise write return d."
            )
        raise ValueError(
            f"the direction of {name} must return d with the structure and shapes of params, but "
            f"{_difference('params', params, 'd', d)}. {correction}{_about_none(d, params)}"
            f"{_about_variables(d, params)}"
        )
    wrong = _leaves_other_than(jnp.floating, d)
    if wrong:
        raise TypeError(
            f"the direction of {name} must return floating-point numbers, which are cast to the "
            f"dtypes of params, but d has other dtypes: {_listed(wrong)}. Write return "
            "jax.tree.map(lambda d, w: jnp.real(d).astype(w.dtype), d, params)."
        )


def checked_pair(name: str, out: Any) -> tuple[Grads, Any]:
    """What a stateful direction returned, after checking that it is a pair ``d, state``."""
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"the direction of {name} must return the pair d, state, but returned one "
            f"{type(out).__name__} with the shapes {_shapes(out)}. Write return d, state; or, "
            "without a state, flatreg.from_direction(direction)."
        )
    return out


def check_state(name: str, new: Any, state: Any) -> None:
    """Checks that a direction kept the structure, shapes and dtypes of its state."""
    structures: Any = jax.tree.structure(new), jax.tree.structure(state)

    def shape_and_dtype(x: Any) -> str:
        return f"{_dtype(x)}{list(np.shape(x))}"

    kinds = [[shape_and_dtype(x) for x in jax.tree.leaves(tree)] for tree in (new, state)]
    if structures[0] != structures[1] or kinds[0] != kinds[1]:
        difference = _difference("the state", state, "the new state", new, shape_and_dtype)
        raise ValueError(
            f"the direction of {name} must return d, state, where the state keeps the structure, "
            f"shapes and dtypes that init(params) gave it, but {difference}. If only a dtype "
            "differs, write return d, optax.tree.cast_like(new_state, state); otherwise let "
            "init(params) return a tree like the new state."
        )


def checked_oracle(name: str, grad_fn: GradFn) -> GradFn:
    """Returns the oracle with checks that it takes only params and returns a gradient."""

    def oracle(params: Params) -> Grads:
        try:
            grads = grad_fn(params)
        except Exception as error:
            missing = _missing_arguments(grad_fn)
            if missing and isinstance(error, TypeError):
                raise OracleError(_oracle_takes_params_only(name, missing)) from error
            if getattr(params, "ndim", None) == 1 and not _accepts(grad_fn, params):
                raise OracleError(_flattened(name, error)) from error
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
            f"{name} needs grad_fn(params) to return a gradient shaped like params, but "
            f"{_difference('params', params, 'grad_fn(params)', grads)}. "
            f"{correction}{_about_none(grads, params)}{_about_variables(grads, params)}"
        )

    return oracle


def _accepts(grad_fn: GradFn, params: Params) -> bool:
    """Whether ``grad_fn`` can be called, which is traced without derivatives of it."""
    try:
        jax.eval_shape(grad_fn, jax.eval_shape(lambda: params))
    except Exception:
        return False
    return True


def _flattened(name: str, error: Exception) -> str:
    return (
        f"{name} calls grad_fn with one vector, because params are one, and it raised "
        f"{type(error).__name__}: {error} If the method is inside optax.flatten, which turns the "
        "parameters into a vector but not the argument of grad_fn, put it before: "
        "optax.chain(flatreg.sam(0.05), optax.flatten(optax.adam(1e-3)))."
    )


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
