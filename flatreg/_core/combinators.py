"""Methods of methods: several at once, or one on some steps only.

All of them take transformations made by :func:`flatreg.from_direction` (or by one another) and
return one, so they nest: ``combine(sam(), every(gam(0.1, 1.0), 5))``.
"""

from typing import Any, TypeAlias

import jax
import optax

from flatreg._core.checks import (
    check_between,
    check_key,
    check_nonnegative,
    check_period,
    check_scalar,
    check_scalars,
    checked_method,
)
from flatreg._core.directions import holds_optimizer
from flatreg._core.tree import mix
from flatreg.typing import Grads, Params, ScalarOrSchedule

Method: TypeAlias = optax.GradientTransformationExtraArgs


def combine(*methods: Method) -> Method:
    r"""Descends several penalties at once: d = g + Σᵢ (dᵢ − g).

    Each method sees the gradient g that came down the chain and keeps its own state; the sum is
    accumulated in at least float32. One method alone comes back as it is.

    Args:
      *methods: one or more transformations, such as ``sam(0.05), gam(0.1, 1.0)``.

    Returns:
      A transformation whose state is the tuple of theirs. It costs Σᵢ (costᵢ − 1) + 1 gradients.

    Raises:
      ValueError: if there is no method; in ``init``, if one of them holds an optimizer.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.combine(flatreg.sam(0.5), flatreg.gradient_regularization(0.5))
      >>> d, _ = tx.update(w, tx.init(w), w, grad_fn=grad_fn)  # w + w/10 + w
      >>> print(d)
      [6.3 8.4]
    """
    if not methods:
        raise ValueError("combine needs at least one method: combine(sam(0.05), gam(0.1, 1.0)).")
    methods = tuple(checked_method("combine", method) for method in methods)
    if len(methods) == 1:
        return methods[0]

    def init(params: Params) -> tuple[Any, ...]:
        state = tuple(method.init(params) for method in methods)
        _check_no_optimizer("combine", state)
        return state

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        steps = [
            method.update(updates, inner, params, **extra)
            for method, inner in zip(methods, state, strict=True)
        ]
        directions = [(1, d) for d, _ in steps]
        d = mix((1 - len(methods), updates), *directions)  # g + Σ(dᵢ − g)
        return optax.tree.cast_like(d, params), tuple(inner for _, inner in steps)

    return Method(init, update)


def every(method: Method, k: int | jax.Array) -> Method:
    r"""The method on the steps 0, k, 2k, …, the plain gradient on the others.

    On an off-step the method's extra gradients are skipped (``lax.cond``) and its state is left
    untouched. They are skipped under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both.

    Args:
      k: the period, ≥ 1; 1 is every step.
      method: the transformation to apply; at cost c a step costs 1 + (c − 1)/k gradients.

    Returns:
      A transformation (:func:`optax.conditionally_transform`), whose state holds the step count.

    Raises:
      TypeError: if ``k`` is no number.
      ValueError: if ``k`` is a Python number below 1 or not whole; in ``init``, if ``method``
        holds an optimizer.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.every(flatreg.sam(5.0), 2)
      >>> first, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> second, state = tx.update(w, state, w, grad_fn=grad_fn)
      >>> print(first, second)
      [6. 8.] [3. 4.]

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, CVPR 2022 (which reuses a stored component of the
      perturbed gradient on the off-steps; here they take the plain gradient).
    """
    check_period(k=k)
    return _on_steps("every", method, lambda step, **_: step % k == 0)


def after(method: Method, step: int | jax.Array) -> Method:
    r"""The plain gradient on the steps before ``step``, the method from then on.

    This is the zero-warm-up of gradient regularization with adaptive optimizers.

    Args:
      step: the first step with the method, counted from 0.
      method: the transformation to apply; its state starts at ``step``, so its schedules do.

    Returns:
      A transformation (:func:`optax.conditionally_transform`), whose state holds the step count.

    Raises:
      TypeError: if ``step`` is no number.
      ValueError: if ``step`` is a negative Python number; in ``init``, if ``method`` holds an
        optimizer.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.after(flatreg.sam(5.0), 1)
      >>> first, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> second, state = tx.update(w, state, w, grad_fn=grad_fn)
      >>> print(first, second)
      [3. 4.] [6. 8.]

    References:
      Zhao et al., `When Will Gradient Regularization Be Harmful?
      <https://arxiv.org/abs/2406.09723>`_, ICML 2024.
    """
    check_scalar(1000, step=step)
    check_nonnegative(step=step)
    first = step
    return _on_steps("after", method, lambda step, **_: step >= first)


def randomly(method: Method, probability: ScalarOrSchedule, key: jax.Array) -> Method:
    r"""The method on each step with the given probability, else the plain gradient.

    Step t draws its coin with ``fold_in(key, t)``, so a run repeats itself and a restored one goes
    on. Off-steps skip the extra gradients as in :func:`every`.

    Args:
      probability: in [0, 1], or a schedule.
      method: the transformation; at cost c a step costs 1 + (c − 1)·probability on average.
      key: a random key, typed or raw.

    Returns:
      A transformation (:func:`optax.conditionally_transform`), whose state holds the step count.

    Raises:
      TypeError: if ``probability`` is no number or schedule, or ``key`` not one key.
      ValueError: if ``probability`` is a Python number outside of [0, 1]; in ``init``, if
        ``method`` holds an optimizer.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.randomly(flatreg.sam(5.0), 0.0, jax.random.key(0))
      >>> d, _ = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> print(d)
      [3. 4.]

    References:
      Zhao, Zhang and Hu, `Randomized Sharpness-Aware Training for Boosting Computational
      Efficiency in Deep Learning <https://arxiv.org/abs/2203.09962>`_, 2022.
    """
    check_scalars(probability=probability)
    check_between(0, 1, probability=probability)
    check_key(key, "flatreg.randomly(method, 0.5, jax.random.key(0))")

    def coin(step: Any, **_: Any) -> jax.Array:
        p = probability(step) if callable(probability) else probability
        return jax.random.bernoulli(jax.random.fold_in(key, step), p)

    return _on_steps("randomly", method, coin)


def _on_steps(name: str, method: Method, condition: Any) -> Method:
    """The method where the condition on the step count holds, else the gradient."""
    method = checked_method(name, method)
    conditional = optax.conditionally_transform(method, condition)

    def init(params: Params) -> Any:
        state = conditional.init(params)
        _check_no_optimizer(name, state)
        return state

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        same: Any = jax.tree.structure(updates), jax.tree.structure(params)
        if same[0] == same[1]:  # Both branches must return the parameters' dtypes.
            updates = optax.tree.cast_like(updates, params)
        return conditional.update(updates, state, params, **extra)

    return Method(init, update)


def _check_no_optimizer(name: str, state: optax.OptState) -> None:
    if holds_optimizer(state):
        raise ValueError(
            f"{name} takes methods, whose output is a gradient, but was given an optimizer. Put "
            f"that behind: optax.chain(flatreg.{name}(…), optax.adam(1e-3))."
        )
