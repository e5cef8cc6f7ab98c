"""Four ways to compute Hessian-vector products of a gradient oracle, with one signature.

An ``hvp`` is a function ``(grad_fn, params) -> (g, v ↦ Hv)`` with H = ∇²L(params). The Hessian is
the linearization of the gradient, so this is the signature of :func:`jax.linearize`. Methods take
an ``hvp`` as an argument, so the caller chooses between exact and approximate products.

=============================  =======================  ===========================================
hvp                            cost of g and one Hv     when to use it
=============================  =======================  ===========================================
:func:`exact_hvp`              2.5 to 3 gradients       by default; many products share one pass
:func:`forward_hvp`            2.5 to 3.3 gradients     with ``microbatches``: stores no residuals
:func:`reverse_hvp`            3 to 3.5 gradients       if the loss has only reverse-mode rules
:func:`finite_difference_hvp`  2 gradients              if memory is scarce; works with every loss
=============================  =======================  ===========================================
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from flatreg._core.checks import (
    OracleError,
    check_function,
    check_vector,
    is_number,
    is_scalar,
    static_args,
)
from flatreg._core.tree import mix, norm, shift
from flatreg.typing import GradFn, Grads, Hvp, Params


def _with_checked_arguments(hvp: Hvp) -> Hvp:
    """Adds an error for the call ``hvp(count)``, and one for a vector of the wrong structure.

    ``optax.inject_hyperparams`` calls ``hvp(count)``, because it treats functions as schedules.
    """

    @functools.wraps(hvp)
    def checked(grad_fn: GradFn, *params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        if not params:
            correction = f"{static_args('hvp')} For gam, use static_args=('hvp', 'ascent_hvp')."
            raise TypeError(f"an hvp takes (grad_fn, params), got one argument. {correction}")
        g, product = hvp(grad_fn, *params)

        def checked_product(v: Grads) -> Grads:
            check_vector(v, *params)
            return product(v)

        return g, checked_product

    return checked


@_with_checked_arguments
def exact_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """Exact Hessian-vector products by :func:`jax.linearize`: g and v ↦ Hv.

    The gradient is linearized once, and every product reuses the stored residuals.

    **stop_gradient.** If the loss contains ``stop_gradient`` or a straight-through estimator, this
    product and a finite difference of ``grad_fn`` are different, because differentiation treats the
    stopped parts as constants and a finite difference does not. The two can even have opposite
    signs. For example, L(w) = ½(w − sg(2w))², where sg is ``stop_gradient``, has ``grad_fn(w)`` =
    w − 2w = −w. A finite difference gives Hv = −v, whereas this function gives Hv = +v. A method
    with exact products descends its penalty with the stopped parts held fixed, whereas
    :func:`finite_difference_hvp` follows the gradient that training uses.

    Args:
      grad_fn: the gradient oracle ``params -> ∇L(params)``.
      params: the point at which the Hessian is evaluated, a tree of floating-point arrays.

    Returns:
      ``g``, the gradient at ``params``, and the function ``v ↦ Hv`` on trees like ``params``.

    Raises:
      TypeError: if the loss lacks a forward-mode rule, for example because it contains a
        ``jax.custom_vjp`` whose backward pass cannot be differentiated. Use :func:`reverse_hvp` or
        :func:`finite_difference_hvp` for such losses.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2)
      >>> g, hessian = flatreg.exact_hvp(grad_fn, jnp.array([1.0, 2.0]))
      >>> print(g, hessian(jnp.ones(2)))
      [1. 6.] [1. 3.]
    """
    g, product = jax.linearize(grad_fn, params)
    return g, with_forward_mode(product)


@_with_checked_arguments
def forward_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """Exact Hessian-vector products by :func:`jax.jvp`: g and v ↦ Hv.

    Each product is a separate pass that stores no residuals. With ``microbatches``, this function
    therefore needs the memory of one microbatch, whereas :func:`exact_hvp` would store the
    residuals of all iterations of the ``lax.scan``. Under ``jit``, XLA merges the repeated
    evaluations of ``grad_fn(params)``.

    Args:
      grad_fn: the gradient oracle ``params -> ∇L(params)``.
      params: the point at which the Hessian is evaluated, a tree of floating-point arrays.

    Returns:
      The pair ``(g, v ↦ Hv)`` of :func:`exact_hvp`.

    Raises:
      TypeError: if the loss contains a ``jax.custom_vjp``, which lacks a forward-mode rule. Use
        :func:`exact_hvp`, :func:`reverse_hvp` or :func:`finite_difference_hvp` for such losses.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> g, hessian = flatreg.forward_hvp(jax.grad(lambda w: jnp.sum(w**4)), jnp.ones(2))
      >>> print(hessian(jnp.array([1.0, 2.0])))
      [12. 24.]
    """
    return grad_fn(params), with_forward_mode(lambda v: jax.jvp(grad_fn, (params,), (v,))[1])


@_with_checked_arguments
def reverse_hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
    """Exact Hessian-vector products by :func:`jax.vjp`, reverse over reverse: g and v ↦ Hv.

    The vector-Jacobian product of the gradient is vᵀH, which equals Hv because H is symmetric.

    Args:
      grad_fn: the gradient oracle ``params -> ∇L(params)``. Only reverse-mode rules are needed.
      params: the point at which the Hessian is evaluated, a tree of floating-point arrays.

    Returns:
      ``g``, the gradient at ``params``, and the function ``v ↦ Hv`` on trees like ``params``.

    Raises:
      TypeError: if the backward pass of the loss cannot be differentiated in reverse mode. Use
        :func:`finite_difference_hvp` for such losses.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> g, hessian = flatreg.reverse_hvp(jax.grad(lambda w: jnp.sum(w**4)), jnp.ones(2))
      >>> print(hessian(jnp.array([1.0, 2.0])))
      [12. 24.]
    """
    g, pullback = jax.vjp(grad_fn, params)
    # Cotangents must have the dtypes of the oracle's output; v has those of the parameters.
    return g, lambda v: optax.tree.cast_like(pullback(optax.tree.cast_like(v, g))[0], g)


def finite_difference_hvp(r: float | jax.Array) -> Hvp:
    r"""Returns an hvp that uses a forward difference: Hv ≈ ‖v‖/r · [∇L(θ + r v/‖v‖) − ∇L(θ)].

    The product is exact on quadratics. In general the error is r‖v‖/2 times the third derivative
    along v, plus rounding errors of order ε‖g‖‖v‖/r, where ε is the machine epsilon. With this hvp,
    ``gradient_norm_penalty(λ)`` is ``penalized_gradient(r, λ/r)``.

    Args:
      r: the length r > 0 of the step in parameter space, a number or a 0-d array. In float32,
        values from 0.01 to 0.1 are usual.

    Returns:
      A function ``(grad_fn, params) -> (g, v ↦ Hv)``. If ``v`` is zero, Hv is zero.

    Raises:
      TypeError: if ``r`` is not a number or a 0-d array.
      ValueError: if ``r`` is a Python number that is not greater than 0.

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
        raise TypeError(
            f"r must be a number, got {r!r}: for example, write finite_difference_hvp(0.01)."
        )
    if is_number(r) and not r > 0:
        raise ValueError(
            f"r must be greater than 0, got {r}: for example, write finite_difference_hvp(0.01)."
        )

    @_with_checked_arguments
    def hvp(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        g = grad_fn(params)

        def product(v: Grads) -> Grads:
            ahead = grad_fn(shift(params, v, r))
            slope = norm(v) / r
            return mix((slope, ahead), (-slope, g))  # ‖v‖/r [∇L(θ + r v/‖v‖) − ∇L(θ)]

        return g, product

    return hvp


def resolve_hvp(hvp: Hvp | None, name: str = "hvp") -> Hvp:
    """Returns the hvp that a method uses. It casts vectors to the parameters' dtypes.

    Args:
      hvp: the argument that the user passed to the method; None means :func:`exact_hvp`.
      name: the name of this argument, for error messages.
    """
    check_function(name, hvp, "a function (grad_fn, params) -> (g, v ↦ Hv) like flatreg.exact_hvp")
    factory: Any = finite_difference_hvp
    if hvp is factory:
        raise TypeError(
            "finite_difference_hvp must be called with the length r of the difference: write "
            f"{name}=flatreg.finite_difference_hvp(0.01)."
        )
    linearize = exact_hvp if hvp is None else hvp
    explained = functools.partial(
        explain_second_derivative,
        reverse=f"pass {name}=flatreg.reverse_hvp to the method",
        difference=f"pass {name}=flatreg.finite_difference_hvp(0.01)",
    )

    def resolved(grad_fn: GradFn, params: Params) -> tuple[Grads, Callable[[Grads], Grads]]:
        g, product = explained(linearize)(grad_fn, params)
        return g, lambda v: explained(product)(optax.tree.cast_like(v, params))

    return resolved


def explain_second_derivative(
    function: Callable[..., Any], *, reverse: str, difference: str
) -> Callable[..., Any]:
    """Adds a note to the errors of a function that differentiates the gradient of a loss.

    Args:
      function: the function, such as an hvp or the product that it returns.
      reverse: what to write if the loss has only reverse-mode rules.
      difference: what to write if the loss cannot be differentiated twice.
    """
    note = (
        "If the loss lacks a forward-mode derivative (for example, because of flash attention), "
        f"{reverse}. If it cannot be differentiated twice, {difference}, which works with every "
        "loss."
    )

    def explained(*args: Any) -> Any:
        try:
            return function(*args)
        except OracleError:
            raise
        except Exception as error:  # Solvers and callbacks inside a loss raise errors of any type.
            if note not in getattr(error, "__notes__", []):
                error.add_note(note)
            raise

    return explained


def with_forward_mode(product: Callable[[Grads], Grads]) -> Callable[[Grads], Grads]:
    """Adds an error to v ↦ Hv if the loss lacks a forward-mode derivative.

    In a traced function, JAX reports this only when the whole program is compiled.
    """

    def checked(v: Grads) -> Grads:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(v))
        if traced and _lacks_forward_mode(product, v):
            raise TypeError(
                "the loss contains a jax.custom_vjp function, which lacks a forward-mode "
                "derivative (jvp)."
            )
        return product(v)

    return checked


def _lacks_forward_mode(product: Callable[[Grads], Grads], v: Grads) -> bool:
    try:
        jaxpr = jax.make_jaxpr(product)(v).jaxpr
    except Exception:  # The caller gets this error from the product itself.
        return False
    return _uses(_MISSING_RULE, dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


# The primitive that stands for the missing forward-mode derivative of a jax.custom_vjp function.
_MISSING_RULE = "custom_lin"


def _uses(name: str, jaxpr: Jaxpr) -> bool:
    """Whether a program or one of its subprograms contains the primitive with this name."""
    return any(eqn.primitive.name == name for eqn in jaxpr.eqns) or any(
        _uses(name, inner) for inner in _subprograms(jaxpr)
    )


def _subprograms(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """The programs that the equations of a program call."""

    def is_program(value: object) -> bool:
        return isinstance(value, Jaxpr | ClosedJaxpr)

    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(value):
                yield value.jaxpr if isinstance(value, ClosedJaxpr) else value
