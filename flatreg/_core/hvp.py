"""Hessian-vector products of a gradient oracle: four ways, one signature.

An ``hvp`` is a function ``(grad_fn, params) -> (g, v ↦ Hv)`` with H = ∇²L(params): the Hessian is
the linearization of the gradient, so the signature is that of :func:`jax.linearize`. Methods take
one as an argument; the choice between exact and approximate is the caller's.

=============================  =======================  ===========================================
hvp                            cost of g and one Hv     take it when
=============================  =======================  ===========================================
:func:`exact_hvp`              2.5 to 3 gradients       the default; many products share one pass
:func:`forward_hvp`            2.5 to 3.3 gradients     under ``microbatches``: stores no residuals
:func:`reverse_hvp`            3 to 3.5 gradients       the loss has reverse-mode rules only
:func:`finite_difference_hvp`  2 gradients              memory is short; works with every loss
=============================  =======================  ===========================================
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from flatreg._core.checks import check_function, is_number, is_scalar, static_args
from flatreg._core.tree import mix, norm, shift
from flatreg.typing import GradFn, Grads, Hvp, Params


def _takes_oracle(hvp: Hvp) -> Hvp:
    """Mends the call ``hvp(count)`` that ``optax.inject_hyperparams`` makes of any function."""

    @functools.wraps(hvp)
    def checked(grad_fn: GradFn, *params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        if not params:
            mend = f"{static_args('hvp')} For gam: static_args=('hvp', 'ascent_hvp')."
            raise TypeError(f"an hvp takes (grad_fn, params), got one argument. {mend}")
        return hvp(grad_fn, *params)

    return checked


@_takes_oracle
def exact_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """g and v ↦ Hv by :func:`jax.linearize`: one pass stored, then each product replays it.

    Args:
      grad_fn: the oracle ``params -> ∇L(params)``.
      params: where the Hessian is taken, a tree of floating-point arrays.

    Returns:
      ``g``, the gradient, and the function ``v ↦ Hv`` for trees ``v`` like ``params``.

    Raises:
      TypeError: if the loss has no forward-mode rule (a ``jax.custom_vjp`` whose backward pass
        cannot be differentiated): take :func:`reverse_hvp` or :func:`finite_difference_hvp`.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2)
      >>> g, hessian = flatreg.exact_hvp(grad_fn, jnp.array([1.0, 2.0]))
      >>> print(g, hessian(jnp.ones(2)))
      [1. 6.] [1. 3.]
    """
    return jax.linearize(grad_fn, params)


@_takes_oracle
def forward_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """g and v ↦ Hv by :func:`jax.jvp`: each product is a pass of its own and stores nothing.

    Linearizing a ``lax.scan`` stacks its residuals; this does not, so it keeps the memory of one
    microbatch under ``microbatches``. Under ``jit`` XLA merges the repeated ``grad_fn(params)``.

    Args:
      grad_fn: the oracle ``params -> ∇L(params)``.
      params: where the Hessian is taken, a tree of floating-point arrays.

    Returns:
      ``g``, the gradient, and the function ``v ↦ Hv`` for trees ``v`` like ``params``.

    Raises:
      TypeError: if the loss holds a ``jax.custom_vjp``, which has no forward-mode rule: take
        :func:`exact_hvp`, :func:`reverse_hvp` or :func:`finite_difference_hvp`.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> g, hessian = flatreg.forward_hvp(jax.grad(lambda w: jnp.sum(w**4)), jnp.ones(2))
      >>> print(hessian(jnp.array([1.0, 2.0])))
      [12. 24.]
    """
    return grad_fn(params), lambda v: jax.jvp(grad_fn, (params,), (v,))[1]


@_takes_oracle
def reverse_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """g and v ↦ Hv by :func:`jax.vjp`, for H is symmetric: reverse over reverse.

    Args:
      grad_fn: the oracle ``params -> ∇L(params)``.
      params: where the Hessian is taken, a tree of floating-point arrays.

    Returns:
      ``g``, the gradient, and the function ``v ↦ Hv`` for trees ``v`` like ``params``.

    Raises:
      TypeError: if the backward pass of the loss cannot be differentiated in reverse mode: take
        :func:`finite_difference_hvp`.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> g, hessian = flatreg.reverse_hvp(jax.grad(lambda w: jnp.sum(w**4)), jnp.ones(2))
      >>> print(hessian(jnp.array([1.0, 2.0])))
      [12. 24.]
    """
    g, pullback = jax.vjp(grad_fn, params)
    # Its cotangents have the oracle's dtypes, where the others' tangents have the parameters'.
    return g, lambda v: optax.tree.cast_like(pullback(optax.tree.cast_like(v, g))[0], g)


def finite_difference_hvp(r: float | jax.Array) -> Hvp:
    r"""Makes an hvp of a forward difference along v: Hv ≈ ‖v‖/r · [∇L(θ + r v/‖v‖) − ∇L(θ)].

    Exact on quadratics; else the error is r‖v‖/2 times the third derivative along v, plus rounding
    of order ε‖g‖‖v‖/r. With it, ``gradient_norm_penalty(λ)`` is ``penalized_gradient(r, λ/r)``.

    Args:
      r: the length of the difference in parameter space, > 0; 0.01 to 0.1 is usual in float32.

    Returns:
      A function ``(grad_fn, params) -> (g, v ↦ Hv)``. A zero ``v`` gives zero.

    Raises:
      TypeError: if ``r`` is no scalar.
      ValueError: if ``r`` is a Python number and not > 0.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2))
      >>> g, hessian = flatreg.finite_difference_hvp(0.5)(grad_fn, jnp.ones(2))
      >>> print(hessian(jnp.array([3.0, 4.0])))
      [6. 8.]

    References:
      Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning <https://arxiv.org/abs/2202.03599>`_, ICML 2022.
    """
    if not is_scalar(r):
        raise TypeError(f"r must be a number, got {r!r}: finite_difference_hvp(0.01), say.")
    if is_number(r) and not r > 0:
        raise ValueError(f"r must be greater than 0, got {r}: finite_difference_hvp(0.01), say.")

    @_takes_oracle
    def hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        g = grad_fn(params)

        def product(v: Grads) -> Grads:
            ahead = grad_fn(shift(params, v, r))
            slope = norm(v) / r
            return mix((slope, ahead), (-slope, g))  # ‖v‖/r [∇L(θ + r v/‖v‖) − ∇L(θ)]

        return g, product

    return hvp


def resolve_hvp(hvp: Hvp | None, name: str = "hvp") -> Hvp:
    """The hvp that a method uses: exact by default, fed with vectors in the parameters' dtypes."""
    check_function(name, hvp, "a function (grad_fn, params) -> (g, v ↦ Hv) like flatreg.exact_hvp")
    factory: Any = finite_difference_hvp
    if hvp is factory:
        raise TypeError(f"{name} needs its length: {name}=flatreg.finite_difference_hvp(0.01).")
    linearize = exact_hvp if hvp is None else hvp

    def explained(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (TypeError, ValueError, NotImplementedError) as error:
            error.add_note(
                "If the loss has no forward-mode derivative (flash attention, say), give the "
                f"method {name}=flatreg.reverse_hvp; if it has no second derivative at all, "
                f"{name}=flatreg.finite_difference_hvp(0.01), which works with every loss."
            )
            raise

    def resolved(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        g, product = explained(linearize, grad_fn, params)
        return g, lambda v: explained(product, optax.tree.cast_like(v, params))

    return resolved
