"""Curvature as a linear map: products v ↦ Cv with the Hessian or the Gauss–Newton matrix.

The public functions work on trees like the parameters. :func:`curvature_matrix` provides the same
map on flat vectors, which Lanczos iteration and trace estimation need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.flatten_util import ravel_pytree

from flatreg._core.checks import check_like, checked_scale
from flatreg._core.hvp import explain_second_derivative, resolve_hvp, with_forward_mode
from flatreg._core.tree import map_named, named_leaves
from flatreg.measures.checks import check_arguments, check_loss, check_not_empty
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider, times
from flatreg.typing import Grads, Hvp, Params, Scale

Curvature: TypeAlias = Callable[[LossFn, Params], Callable[[Grads], Grads]]
"""``curvature(loss_fn, params) -> (v ↦ Cv)``: :func:`hessian`, or a :func:`gauss_newton` matrix."""


def hessian(loss_fn: LossFn, params: Params, *, hvp: Hvp | None = None) -> Callable[[Grads], Grads]:
    """Products v ↦ Hv with the Hessian H = ∇²L.

    Each product costs about three gradients. For a loss without forward-mode derivatives, such as
    one that contains a ``jax.custom_vjp``, an ODE solver or a callback, choose another ``hvp``. The
    measures take this choice as their argument ``curvature``::

        curvature = functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)
        pairs = measures.top_eigenpairs(loss_fn, params, key, curvature=curvature)

    Args:
      loss_fn: the loss, ``params -> scalar``.
      params: the parameters at which to take the Hessian.
      hvp: how to compute the products: ``flatreg.reverse_hvp`` if the loss has only reverse-mode
        rules, ``flatreg.finite_difference_hvp(0.01)`` if it cannot be differentiated twice. If
        None, by forward-over-reverse differentiation, without stored residuals. If the loss
        contains ``stop_gradient``, exact products and finite differences can have different signs,
        as explained at :func:`flatreg.exact_hvp`.

    Returns:
      A function from a tree like ``params`` to its product with H.

    Raises:
      TypeError: if the loss is not a floating-point scalar, or a leaf does not have a
        floating-point dtype.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> product = measures.hessian(lambda w: jnp.sum(w**4), jnp.array([1.0, 2.0]))
      >>> print(product(jnp.ones(2)))
      [12. 48.]
    """
    check_loss("hessian", loss_fn, params)
    grad_fn = jax.grad(loss_fn)
    if hvp is not None:
        return resolve_hvp(hvp)(grad_fn, params)[1]
    return explained(with_forward_mode(lambda v: jax.jvp(grad_fn, (params,), (v,))[1]))


def explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a note to errors, which shows how to measure a loss without forward mode."""

    def curvature(hvp: str) -> str:
        return f"curvature=functools.partial(measures.hessian, hvp=flatreg.{hvp})"

    return explain_second_derivative(
        function,
        reverse=f"pass {curvature('reverse_hvp')} to the measure",
        difference=f"pass {curvature('finite_difference_hvp(0.01)')}",
    )


def gauss_newton(
    model_fn: Callable[[Params], Any], output_loss: Callable[[Any], jax.Array]
) -> Curvature:
    r"""The Gauss–Newton matrix G = JᵀMJ of the loss L(θ) = output_loss(model_fn(θ)).

    J is the Jacobian of the outputs, and M is the Hessian of ``output_loss`` with respect to the
    outputs. G is therefore the Hessian of the loss with the model linearized at θ. It is positive
    semidefinite if ``output_loss`` is convex.

    Args:
      model_fn: ``params -> outputs``, the model evaluated on the data to measure with.
      output_loss: ``outputs -> scalar``.

    Returns:
      A function to pass as the ``curvature`` argument of the measures. The measures then ignore
      their ``loss_fn`` argument.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> curvature = measures.gauss_newton(lambda w: w**2, lambda z: jnp.sum((z - 1.0) ** 2) / 2)
      >>> print(curvature(None, jnp.array([1.0, 2.0]))(jnp.ones(2)))
      [ 4. 16.]

    References:
      Schraudolph, `Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent
      <https://doi.org/10.1162/08997660260028683>`_, Neural Computation 14, 2002.
    """

    def curvature(loss_fn: LossFn, params: Params) -> Callable[[Grads], Grads]:
        del loss_fn  # part of the protocol

        def product(v: Grads) -> Grads:
            outputs, change = jax.jvp(model_fn, (params,), (v,))  # Jv
            bent = jax.jvp(jax.grad(output_loss), (outputs,), (change,))[1]  # MJv
            product: Grads = jax.vjp(model_fn, params)[1](bent)[0]  # JᵀMJv
            return product

        return with_forward_mode(product)

    return curvature


class CurvatureMatrix(NamedTuple):
    """The symmetric matrix T·C·T, represented by its products with flat vectors.

    Attributes:
      matvec: the product of the matrix with a vector, shape (size,).
      to_tree: converts a vector to a tree like the parameters.
      size: the number of weights.
      dtype: the dtype of the vectors, at least float32.
    """

    matvec: Callable[[jax.Array], jax.Array]
    to_tree: Callable[[jax.Array], Grads]
    size: int
    dtype: Any


def curvature_matrix(
    loss_fn: LossFn,
    params: Params,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> CurvatureMatrix:
    """Returns T·C·T at ``params`` in at least float32. By default, C is the Hessian."""
    params = in_float32_or_wider(params)
    return scaled_curvature(loss_fn, params, curvature, checked_scale(scale, params))


def scaled_curvature(
    loss_fn: LossFn, params: Params, curvature: Curvature | None, factors: Params | None
) -> CurvatureMatrix:
    """Returns T·C·T for the given factors T. The parameters must have at least float32."""
    product = checked_products(curvature)(loss_fn, params)
    flat, to_tree = ravel_pytree(params)

    def matvec(v: jax.Array) -> jax.Array:
        return to_vector(times(factors, product(times(factors, to_tree(v)))))  # TCTv

    return CurvatureMatrix(matvec, to_tree, flat.size, flat.dtype)


def checked_products(curvature: Curvature | None) -> Curvature:
    """The curvature, by default the Hessian, with errors that show a corrected call."""
    form = "curvature=functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)"
    if curvature is not None and not callable(curvature):
        raise TypeError(
            f"curvature must be a function (loss_fn, params) -> (v ↦ Cv), got {curvature!r}: for "
            f"example, write {form}."
        )

    def checked(loss_fn: LossFn, params: Params) -> Callable[[Grads], Grads]:
        if curvature is None:
            return hessian(loss_fn, params)
        product = explained(curvature)(loss_fn, params)
        if isinstance(product, tuple) or not callable(product):
            raise TypeError(
                "curvature(loss_fn, params) must return one function v ↦ Cv, but returned a "
                f"{type(product).__name__}. To choose how Hessian-vector products are computed, "
                f"write {form}."
            )

        def checked_product(v: Grads) -> Grads:
            out = explained(product)(v)
            check_like("the product v ↦ Cv of the curvature", out, params)
            return out

        return checked_product

    return checked


def to_vector(tree: Grads) -> jax.Array:
    """Concatenates all leaves into one vector."""
    return ravel_pytree(tree)[0]


def restrict(
    loss_fn: LossFn, params: Params, where: Callable[[str], bool]
) -> tuple[LossFn, dict[str, jax.Array]]:
    """Restricts a loss to some of the leaves and fixes the others, to measure single layers.

    Args:
      loss_fn: the loss, ``params -> scalar``.
      params: all parameters.
      where: a predicate on the path of a leaf, such as ``"dense/kernel"``. The leaves for which it
        is true are the arguments of the new loss.

    Returns:
      The new loss, and the chosen leaves in a dictionary from path to array. Pass both as the first
      two arguments of a measure.

    Raises:
      ValueError: if ``params`` has no weights, or ``where`` is true for no leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> params = {"first": jnp.ones(2), "last": jnp.ones(3)}
      >>> loss_fn = lambda p: jnp.sum(p["first"] ** 2) * jnp.sum(p["last"] ** 2)
      >>> last_layer = measures.restrict(loss_fn, params, lambda path: path == "last")
      >>> print(measures.trace(*last_layer, probes=None).value)
      12.0
    """
    check_arguments("restrict", loss_fn, params)
    check_not_empty(params)
    leaves = named_leaves(params)
    chosen = {path: x for path, x in leaves.items() if where(path)}
    if not chosen:
        raise ValueError(
            f"where is true for no leaf of params, whose paths are {', '.join(leaves)}: for "
            f"example, write where=lambda path: path == {next(iter(leaves))!r}."
        )

    def restricted(chosen: dict[str, jax.Array]) -> jax.Array:
        return loss_fn(map_named(lambda path, x: chosen.get(path, x), params))

    return restricted, chosen
