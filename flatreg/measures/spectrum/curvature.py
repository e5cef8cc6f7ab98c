"""The curvature of a loss as a linear operator: ``v ↦ Cv`` on trees, and on vectors for Lanczos."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from flatreg._core import tree as _tree
from flatreg._core.checks import checked_scale
from flatreg._core.tree import map_named, named_leaves
from flatreg.measures.dataset import LossFn
from flatreg.measures.inputs import check_loss, check_weights
from flatreg.typing import Grads, Params, Scale

Curvature: TypeAlias = Callable[[LossFn, Params], Callable[[Grads], Grads]]
"""``curvature(loss_fn, params) -> (v ↦ Cv)``: :func:`hessian`, or a :func:`gauss_newton`."""


def hessian(loss_fn: LossFn, params: Params) -> Callable[[Grads], Grads]:
    """v ↦ Hv with H = ∇²L, forward over reverse: each product costs about three gradients.

    Args:
      loss_fn: ``params -> scalar``.
      params: where the Hessian is taken.

    Returns:
      The product with trees like ``params``.

    Raises:
      TypeError: if the loss is not one floating-point number, or a leaf not of floating point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> product = measures.hessian(lambda w: jnp.sum(w**4), jnp.array([1.0, 2.0]))
      >>> print(product(jnp.ones(2)))
      [12. 48.]
    """
    check_loss("hessian", loss_fn, params)
    return lambda v: jax.jvp(jax.grad(loss_fn), (params,), (v,))[1]


def gauss_newton(
    model_fn: Callable[[Params], Any], output_loss: Callable[[Any], jax.Array]
) -> Curvature:
    r"""v ↦ Gv with G = JᵀMJ: the Gauss–Newton matrix of L(θ) = output_loss(model_fn(θ)).

    J is the Jacobian of the outputs and M the Hessian of the loss in them, so that G is the Hessian
    of the loss with the model linearized; positive semidefinite if ``output_loss`` is convex.

    Args:
      model_fn: ``params -> outputs``, on the data that it is to be measured on.
      output_loss: ``outputs -> scalar``.

    Returns:
      The curvature, for the ``curvature`` argument of the measures.

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
        def product(v: Grads) -> Grads:
            outputs, change = jax.jvp(model_fn, (params,), (v,))
            bent = jax.jvp(jax.grad(output_loss), (outputs,), (change,))[1]
            product: Grads = jax.vjp(model_fn, params)[1](bent)[0]
            return product

        return product

    return curvature


class Operator(NamedTuple):
    """T·C·T as a matrix on vectors, and how trees like the parameters become vectors and back."""

    matvec: Callable[[jax.Array], jax.Array]
    to_tree: Callable[[jax.Array], Grads]
    size: int
    dtype: Any


def operator(
    loss_fn: LossFn,
    params: Params,
    curvature: Curvature | None = None,
    scale: Scale | None = None,
) -> Operator:
    """The curvature at ``params``, in at least float32."""
    params = widened(params)
    factors = checked_scale(scale, params)
    product = (hessian if curvature is None else curvature)(loss_fn, params)
    flat, to_tree = ravel_pytree(params)

    def matvec(v: jax.Array) -> jax.Array:
        scaled = times(factors, product(times(factors, to_tree(v))))
        return to_vector(scaled)

    return Operator(matvec, to_tree, flat.size, flat.dtype)


def to_vector(tree: Grads) -> jax.Array:
    """All leaves in one vector: for curvature, never on the training path."""
    return ravel_pytree(tree)[0]


def times(factors: Params | None, tree: Grads) -> Grads:
    """T·x, with None for T = 1."""
    return tree if factors is None else jax.tree.map(jnp.multiply, factors, tree)


def widened(params: Params) -> Params:
    """The parameters in at least float32, for curvature drowns in the rounding of less."""
    check_weights(params)
    return _tree.widened(params)


def restrict(
    loss_fn: LossFn, params: Params, where: Callable[[str], bool]
) -> tuple[LossFn, dict[str, jax.Array]]:
    """The loss as a function of some leaves alone, the others fixed: curvature layer by layer.

    Args:
      loss_fn: ``params -> scalar``.
      params: all parameters.
      where: a predicate on the path of a leaf, such as ``"dense/kernel"``.

    Returns:
      The loss, and the leaves that it takes, by path: the first two arguments of every measure.

    Raises:
      ValueError: if ``where`` picks no leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> params = {"first": jnp.ones(2), "last": jnp.ones(3)}
      >>> loss_fn = lambda p: jnp.sum(p["first"] ** 2) * jnp.sum(p["last"] ** 2)
      >>> last_layer = measures.restrict(loss_fn, params, lambda path: path == "last")
      >>> print(measures.trace(*last_layer, probes=None).value)
      12.0
    """
    leaves = named_leaves(params)
    chosen = {path: x for path, x in leaves.items() if where(path)}
    if not chosen:
        raise ValueError(f"where picks no leaf: their paths are {', '.join(leaves)}.")

    def restricted(chosen: dict[str, jax.Array]) -> jax.Array:
        return loss_fn(map_named(lambda path, x: chosen.get(path, x), params))

    return restricted, chosen
