"""Methods of methods: several at once, on some steps only, on each shard of the batch.

All of them take transformations made by :func:`flatreg.from_direction` (or by one another) and
return one, so they nest: ``combine(sam(), every(5, gam(0.1, 1.0)))``.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._batches import ShardedGradFn, mean_of
from flatreg._checks import check_between, check_method, check_nonnegative
from flatreg._tree import mix
from flatreg._types import Grads, Params, ScalarOrSchedule

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
      ValueError: if there is no method.

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
    for method in methods:
        check_method("combine", method)
    if len(methods) == 1:
        return methods[0]

    def init(params: Params) -> tuple[Any, ...]:
        return tuple(method.init(params) for method in methods)

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        steps = [
            method.update(updates, inner, params, **extra)
            for method, inner in zip(methods, state, strict=True)
        ]
        directions = [(1, d) for d, _ in steps]
        d = mix((1 - len(methods), updates), *directions)  # g + Σ(dᵢ − g)
        return optax.tree.cast_like(d, params), tuple(inner for _, inner in steps)

    return Method(init, update)


def every(k: int | jax.Array, method: Method) -> Method:
    r"""The method on the steps 0, k, 2k, …, the plain gradient on the others.

    On an off-step the method's extra gradients are skipped (``lax.cond``) and its state is left
    untouched. They are skipped under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both.

    Args:
      k: the period, ≥ 1; 1 is every step.
      method: the transformation to apply; at cost c a step costs 1 + (c − 1)/k gradients.

    Returns:
      A transformation (:func:`optax.conditionally_transform`), whose state holds the step count.

    Raises:
      ValueError: if ``k`` is a Python number below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.every(2, flatreg.sam(5.0))
      >>> first, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> second, state = tx.update(w, state, w, grad_fn=grad_fn)
      >>> print(first, second)
      [6. 8.] [3. 4.]

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, CVPR 2022 (which reuses a stored component of the
      perturbed gradient on the off-steps; here they take the plain gradient).
    """
    check_between(1, math.inf, k=k)
    check_method("every", method)
    return optax.conditionally_transform(method, lambda step, **_: step % k == 0)


def after(step: int | jax.Array, method: Method) -> Method:
    r"""The plain gradient on the steps before ``step``, the method from then on.

    This is the zero-warm-up of gradient regularization with adaptive optimizers.

    Args:
      step: the first step with the method, counted from 0.
      method: the transformation to apply; its state starts at ``step``, so its schedules do.

    Returns:
      A transformation (:func:`optax.conditionally_transform`), whose state holds the step count.

    Raises:
      ValueError: if ``step`` is a negative Python number.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.after(1, flatreg.sam(5.0))
      >>> first, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> second, state = tx.update(w, state, w, grad_fn=grad_fn)
      >>> print(first, second)
      [3. 4.] [6. 8.]

    References:
      Zhao et al., `When Will Gradient Regularization Be Harmful?
      <https://arxiv.org/abs/2406.09723>`_, ICML 2024.
    """
    check_nonnegative(step=step)
    check_method("after", method)
    first = step
    return optax.conditionally_transform(method, lambda step, **_: step >= first)


def randomly(probability: ScalarOrSchedule, method: Method, key: jax.Array) -> Method:
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
      ValueError: if ``probability`` is a Python number outside of [0, 1].

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.randomly(0.0, flatreg.sam(5.0), jax.random.key(0))
      >>> d, _ = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> print(d)
      [3. 4.]

    References:
      Zhao, Zhang and Hu, `Randomized Sharpness-Aware Training for Boosting Computational
      Efficiency in Deep Learning <https://arxiv.org/abs/2203.09962>`_, 2022.
    """
    check_between(0, 1, probability=probability)
    check_method("randomly", method)

    def coin(step: Any, **_: Any) -> jax.Array:
        p = probability(step) if callable(probability) else probability
        return jax.random.bernoulli(jax.random.fold_in(key, step), p)

    return optax.conditionally_transform(method, coin)


def per_shard(method: Method) -> Method:
    r"""m-sharpness: the mean over m shards of the batch of each shard's own direction.

    d = (1/m) Σᵢ dᵢ, where dᵢ is the method's direction for the loss on shard i. For SAM that is
    (1/m) Σᵢ ∇Lᵢ(θ + ρ ∇Lᵢ/‖∇Lᵢ‖). The shards are evaluated side by side (``vmap``): with as many
    shards as devices along a sharded batch, each device perturbs by its own gradient.

    All shards see one state, and one key for :func:`randomly`. Of the states that they return,
    floating-point leaves are averaged; the others are the first shard's.

    Args:
      method: the transformation to apply to each shard.

    Returns:
      A transformation that costs what ``method`` does, in the memory of m copies of the
      perturbed parameters (one a device when sharded). It needs the ``grad_fn`` of
      ``value_and_grad_fn(loss_fn, shards=m)``.

    Raises:
      TypeError: if ``grad_fn`` does not come from ``value_and_grad_fn(..., shards=m)``.

    Examples:
      >>> import jax.numpy as jnp, flatreg
      >>> loss_fn = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> w, x = jnp.ones(2), jnp.diag(jnp.array([1.0, 2.0]))
      >>> loss, g, grad_fn = flatreg.value_and_grad_fn(loss_fn, shards=2)(w, x)
      >>> tx = flatreg.per_shard(flatreg.sam(1.0))
      >>> d, _ = tx.update(g, tx.init(w), w, grad_fn=grad_fn)
      >>> print(g, d)
      [1. 4.] [2. 8.]

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021, section 4.1.
    """
    check_method("per_shard", method)

    def update(
        updates: Grads,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Any = None,
        **extra: Any,
    ) -> tuple[Grads, Any]:
        if not isinstance(grad_fn, ShardedGradFn):
            raise TypeError(
                "per_shard needs the gradient oracle of each shard: write loss, grads, grad_fn = "
                "flatreg.value_and_grad_fn(loss_fn, shards=m)(params, batch) and hand this "
                f"grad_fn to tx.update; got {grad_fn!r}."
            )

        def on_shard(shard: Any, g: Grads) -> tuple[Grads, Any]:
            return method.update(g, state, params, grad_fn=grad_fn.on_shard(shard), **extra)

        directions, states = jax.vmap(on_shard)(grad_fn.shards, grad_fn.grads)
        return mean_of(directions), jax.tree.map(_one, states)

    return Method(method.init, update)


def _one(stacked: jax.Array) -> jax.Array:
    """One value for all shards, bitwise theirs where they agree."""
    first = stacked[0]
    if jnp.issubdtype(stacked.dtype, jnp.floating):
        return first + jnp.mean(stacked - first, axis=0)
    return first
