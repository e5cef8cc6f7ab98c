"""Combinators: functions that add up several methods, or apply a method only on some steps.

Each combinator takes methods made by :func:`flatreg.from_direction`, or by other combinators, and
returns a method. Combinators can therefore be nested: ``combine(sam(), every(gam(0.1, 1.0), 5))``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from flatreg._core.directions import holds_method, holds_optimizer
from flatreg._core.tree import computed_once, mix, new_if_finite, norm
from flatreg.typing import Grads, Method, Params, ScalarOrSchedule


def combine(*methods: Method) -> Method:
    r"""Adds up several methods: d = g + Σᵢ (dᵢ − g).

    Each method gets the incoming gradient g, computes its direction dᵢ and keeps its own state. The
    sum is accumulated in at least float32. A single method is returned unchanged.

    Args:
      *methods: one or more methods, such as ``sam(0.05), gam(0.1, 1.0)``.

    Returns:
      A transformation whose state is the tuple of the methods' states. A step costs
      Σᵢ (costᵢ − 1) + 1 gradients, where costᵢ is the cost of method i alone.

    Raises:
      TypeError: if an argument is not a transformation.
      ValueError: if called without a method; in ``init``, if a method contains an adaptive
        optimizer, such as ``optax.adam``, or is a transformation of Optax that never calls
        ``grad_fn``, such as ``optax.sgd``. An ``optax.sgd`` in a chain with a method cannot be
        detected. Your own transformations are accepted whether or not they call ``grad_fn``.

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
    given = methods
    methods = tuple(checked_method("combine", method) for method in methods)
    if len(methods) == 1:
        return methods[0]

    def init(params: Params) -> tuple[Any, ...]:
        state = tuple(method.init(params) for method in methods)
        for method, inner in zip(given, state, strict=True):
            _check_no_optimizer("combine", method, inner, params)
        return state

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        updates = computed_once(updates)
        steps = [
            method.update(updates, inner, params, **extra)
            for method, inner in zip(methods, state, strict=True)
        ]
        directions = [(1, d) for d, _ in steps]
        d = mix((1 - len(methods), updates), *directions)  # g + Σ(dᵢ − g)
        return optax.tree.cast_like(d, params), tuple(inner for _, inner in steps)

    return Method(init, update)


def every(method: Method, k: int | jax.Array) -> Method:
    r"""Applies a method on the steps 0, k, 2k, … and returns the plain gradient on the others.

    On the other steps, the extra gradients of the method are skipped (``lax.cond``) and its state
    does not change. This holds under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both
    branches.

    Args:
      method: the method to apply. If it costs c gradients, a step costs 1 + (c − 1)/k gradients on
        average.
      k: the period, an integer of at least 1. With 1, the method is applied on every step.

    Returns:
      A transformation (:func:`optax.conditionally_transform`) whose state contains the step count.

    Raises:
      TypeError: if ``k`` is not a number, or ``method`` is not a transformation.
      ValueError: if ``k`` is a Python number that is below 1 or not an integer; in ``init``, if
        ``method`` is an optimizer, such as ``optax.sgd``, or contains an adaptive one.

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
      <https://arxiv.org/abs/2203.02714>`_, CVPR 2022. Between the steps with the method, the paper
      reuses a stored component of the perturbed gradient; this function uses the plain gradient.
    """
    check_period(k=k)
    return _on_steps("every", method, lambda step, **_: step % k == 0)


def after(method: Method, step: int | jax.Array) -> Method:
    r"""Returns the plain gradient before a given step and applies a method from that step on.

    This is the zero-warm-up of Zhao et al., for gradient regularization with adaptive optimizers.

    Args:
      method: the method to apply. Its state is first updated at ``step``, so its schedules start
        at that step.
      step: the first step with the method, counted from 0.

    Returns:
      A transformation (:func:`optax.conditionally_transform`) whose state contains the step count.

    Raises:
      TypeError: if ``step`` is not a number, or ``method`` is not a transformation.
      ValueError: if ``step`` is a negative Python number; in ``init``, if ``method`` is an
        optimizer, such as ``optax.sgd``, or contains an adaptive one.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.after(flatreg.sam(5.0), 1)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     d, state = tx.update(w, state, w, grad_fn=grad_fn)
      ...     print(d)
      [3. 4.]
      [6. 8.]

    References:
      Zhao et al., `When Will Gradient Regularization Be Harmful?
      <https://arxiv.org/abs/2406.09723>`_, ICML 2024.
    """
    check_scalar(1000, step=step)
    check_nonnegative(step=step)
    first = step
    return _on_steps("after", method, lambda step, **_: step >= first)


def randomly(method: Method, probability: ScalarOrSchedule, key: jax.Array) -> Method:
    r"""Applies a method on randomly chosen steps and returns the plain gradient on the others.

    Each step is chosen independently with the given probability. Step t draws with the key
    ``fold_in(key, t)``, so runs are reproducible, and a restored run continues with the same draws.
    On the other steps, the extra gradients of the method are skipped (``lax.cond``) and its state
    does not change. This holds under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both
    branches.

    Args:
      method: the method to apply. If it costs c gradients, a step costs 1 + (c − 1)·probability
        gradients on average.
      probability: the probability of each step, a number in [0, 1] or a schedule.
      key: a random key, typed or raw.

    Returns:
      A transformation (:func:`optax.conditionally_transform`) whose state contains the step count.

    Raises:
      TypeError: if ``probability`` is not a number or a schedule, ``key`` is not a single random
        key, or ``method`` is not a transformation.
      ValueError: if ``probability`` is a Python number outside [0, 1]; in ``init``, if ``method``
        is an optimizer, such as ``optax.sgd``, or contains an adaptive one.

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

    def is_on(step: Any, **_: Any) -> jax.Array:
        p = probability(step) if callable(probability) else probability
        return jax.random.bernoulli(jax.random.fold_in(key, step), p)

    return _on_steps("randomly", method, is_on)


class WhenSharpState(NamedTuple):
    """State of :func:`when_sharp`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      mean: the moving average μ of ‖g‖², a float32 scalar.
      variance: the moving average σ² of (‖g‖² − μ)², a float32 scalar.
      inner_state: the state of the method.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax does
    mean: jax.Array
    variance: jax.Array
    inner_state: optax.OptState


def when_sharp(
    method: Method, threshold: ScalarOrSchedule = 0.0, *, decay: ScalarOrSchedule = 0.9
) -> Method:
    r"""Applies a method on steps with a large gradient (AE-SAM), else returns the plain gradient.

    A step applies the method if ‖g‖² ≥ μ + cσ, where μ and σ² are moving averages of the mean and
    variance of ‖g‖²:

    .. code-block:: text

      μ ← δμ + (1 − δ)‖g‖²          σ² ← δσ² + (1 − δ)(‖g‖² − μ)²

    They include the current gradient, and start with μ = 0 and σ² = e⁻¹⁰. For normally distributed
    ‖g‖², c = 1 selects 16% of the steps, c = 0 selects 50%, and c = −1 selects 84%. The paper
    decreases c over T steps from λ₂ = 1 to λ₁ = −1: ``when_sharp(sam(rho),
    optax.linear_schedule(1.0, -1.0, T))``.

    On the other steps, the extra gradients of the method are skipped (``lax.cond``) and its state
    does not change. This holds under ``jit``, ``scan`` and ``lax.map``; ``vmap`` computes both
    branches. A gradient that is not finite does not enter the averages, and the method is applied.

    Args:
      method: the method to apply.
      threshold: the threshold c in units of σ, any number or a schedule.
      decay: the decay rate δ of both averages, in [0, 1], a number or a schedule.

    Returns:
      A transformation. If the method costs c gradients, a step costs between 1 and c gradients.

    Raises:
      TypeError: if ``threshold`` or ``decay`` is not a number or a schedule, or ``method`` is not a
        transformation.
      ValueError: if ``decay`` is a Python number outside [0, 1]; in ``init``, if ``method`` is an
        optimizer, such as ``optax.sgd``, or contains an adaptive one.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> tx = flatreg.when_sharp(flatreg.sam(5.0))
      >>> w = jnp.array([3.0, 4.0])
      >>> first, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
      >>> small, state = tx.update(w / 10, state, w / 10, grad_fn=grad_fn)
      >>> print(first, small)
      [6. 8.] [0.3 0.4]

    References:
      Jiang et al., `An Adaptive Policy to Employ Sharpness-Aware Minimization
      <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.
    """
    check_scalars(threshold=threshold, decay=decay)
    check_between(0, 1, decay=decay)
    given, method = method, checked_method("when_sharp", method)

    def init(params: Params) -> Any:
        inner_state = method.init(params)
        _check_no_optimizer("when_sharp", given, inner_state, params)
        variance = jnp.full((), math.exp(-10), jnp.float32)
        return WhenSharpState(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), variance, inner_state
        )

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        updates = computed_once(updates)
        c, delta = (x(state.count) if callable(x) else x for x in (threshold, decay))
        square = norm(updates) ** 2
        mean = delta * state.mean + (1 - delta) * square
        variance = delta * state.variance + (1 - delta) * (square - mean) ** 2
        is_flat = square < mean + c * jnp.sqrt(variance)  # False for NaN
        structures: Any = jax.tree.structure(updates), jax.tree.structure(params)
        if structures[0] == structures[1]:  # Both branches must return the parameters' dtypes.
            updates = optax.tree.cast_like(updates, params)
        d, inner_state = jax.lax.cond(
            is_flat,
            lambda: (updates, state.inner_state),
            lambda: method.update(updates, state.inner_state, params, **extra),
        )
        mean, variance = new_if_finite((mean, variance), (state.mean, state.variance))
        count: Any = optax.safe_increment(state.count)
        return d, WhenSharpState(count, mean, variance, inner_state)

    return Method(init, update)


def _on_steps(name: str, method: Method, condition: Any) -> Method:
    """Applies the method on steps that satisfy a condition; returns the gradient on the others."""
    given, method = method, checked_method(name, method)
    conditional = optax.conditionally_transform(method, condition)

    def init(params: Params) -> Any:
        state = conditional.init(params)
        _check_no_optimizer(name, given, method.init(params), params)
        return state

    def update(updates: Grads, state: Any, params: Any = None, **extra: Any) -> tuple[Grads, Any]:
        structures: Any = jax.tree.structure(updates), jax.tree.structure(params)
        if structures[0] == structures[1]:  # Both branches must return the parameters' dtypes.
            updates = optax.tree.cast_like(updates, params)
        return conditional.update(updates, state, params, **extra)

    return Method(init, update)


def _check_no_optimizer(name: str, method: Method, state: optax.OptState, params: Params) -> None:
    """Checks that a combinator got a method and not an optimizer.

    Two rules reject a transformation:

    1. Its state contains the state of an adaptive optimizer, such as ``optax.adam``.
    2. Optax made it, it contains no method of flatreg, and it never calls ``grad_fn``. This rejects
       ``optax.sgd``, whose state is not unique.

    A transformation that somebody else wrote is not rejected by the second rule if it is passed
    directly, whether or not it calls ``grad_fn``. Inside ``optax.chain`` or another wrapper of
    Optax, it must call ``grad_fn``. The rules cannot detect an ``optax.sgd`` in a chain with a
    method.
    """
    if holds_optimizer(state) or _ignores_oracle(method, state, params):
        raise ValueError(
            f"{name} takes methods, whose output is a gradient, but got an optimizer or another "
            "transformation that does not call grad_fn. Put it after the method: "
            f"optax.chain(flatreg.{name}(…), optax.sgd(0.1))."
        )


def _ignores_oracle(method: Method, state: optax.OptState, params: Params) -> bool:
    """Whether Optax made the transformation, without a method in it, and it calls no ``grad_fn``.

    The update is traced with the parameters as gradient, and nothing is computed.
    """
    module = getattr(method.update, "__module__", None) or ""
    if module.partition(".")[0] != "optax" or holds_method(state) or not jax.tree.leaves(params):
        return False
    called = []

    def grad_fn(params: Params, *args: Any, **kwargs: Any) -> Grads:
        called.append(True)
        return params

    def update(state: Any, params: Params) -> Any:
        with_extra = optax.with_extra_args_support(method)
        return with_extra.update(params, state, params, grad_fn=grad_fn)

    try:
        jax.eval_shape(update, state, params)
    except Exception:  # For example, because it needs further arguments. Then nothing is known.
        return False
    return not called
