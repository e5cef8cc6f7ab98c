"""How fast the Hessian changes around a point: its local Lipschitz constant ρ.

    ‖∇²L(θ+δ) − ∇²L(θ)‖₂ ≤ ρ‖δ‖ for ‖δ‖ ≤ r    ⟹    L(θ+δ) ≤ L + gᵀδ + ½δᵀ∇²L δ + ρ‖δ‖³/6

To lowest order in δ, the ratio ‖∇²L(θ+δ) − ∇²L(θ)‖₂/‖δ‖ is the largest value of the trilinear form
uᵀ(∇³L δ)v/‖δ‖ over unit vectors u and v. The search therefore improves u, v and δ in turn: two
steps of power iteration on ∇²L(θ+δ) − ∇²L(θ) improve u and v, and then δ is set to the direction
∇³L(θ+δ)[u, v] in which uᵀ∇²L(θ+δ)v grows fastest.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flatreg._core.checks import is_number
from flatreg._core.hvp import with_forward_mode
from flatreg._core.tree import norm, unit
from flatreg.measures.checks import check_loss
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import (
    Curvature,
    checked_products,
    explained,
    to_vector,
)
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Grads, Params

NEAR_FLOOR = 10  # A value below this multiple of the floor may be pure rounding error.


class HessianLipschitz(NamedTuple):
    """A lower bound on ρ, and the displacement at which it is attained.

    Attributes:
      value: the largest ‖(∇²L(θ+δ) − ∇²L(θ))u‖/‖δ‖ found, with u a unit vector.
      perturbation: the δ at which the value is attained, a tree like the parameters.
      values: the largest value found from each start, shape (starts,). If they differ much, more
        starts or steps may find a larger one.
      floor: eps·‖∇²L‖/‖δ‖, approximately the value that rounding errors alone produce. Here eps is
        the machine epsilon of float32, or of float64 if the parameters are float64.
    """

    value: jax.Array
    perturbation: Grads
    values: jax.Array
    floor: jax.Array


def hessian_lipschitz(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    radius: float | jax.Array,
    *,
    starts: int = 4,
    steps: int = 20,
    curvature: Curvature | None = None,
) -> HessianLipschitz:
    r"""A lower bound on the local Lipschitz constant ρ of the Hessian.

    ρ = max_{‖δ‖≤r} ‖∇²L(θ+δ) − ∇²L(θ)‖₂/‖δ‖. The value is found by a search, so it is a lower bound
    on ρ. A bound that depends on ρ is therefore not proven if this value is used for ρ.

    The search and the ball are choices of this library. As stated in arXiv 1809.07402v1, the paper
    defines ρ over the box \|δᵢ\| ≤ κᵢ, which is contained in the ball of radius r = ‖κ‖.

    If the value is below ten times its rounding floor, as for a quadratic loss, a warning is issued
    (unless the function is traced). In that case, use a larger radius or float64.

    Args:
      loss_fn: the loss, ``params -> scalar``, such as a :func:`dataset_loss`. It must be three
        times differentiable, because the search does not notice the kinks of ReLU.
      params: θ, the center of the ball.
      key: the random key for the starts.
      radius: r > 0, in units of the parameters.
      starts: the number of random displacements δ to start from. Their lengths are r/starts, …, r,
        and the search changes only their directions.
      steps: the number of search steps from each start. Each step costs four Hessian-vector
        products and one third derivative, which amounts to 12 gradients on a small network.
      curvature: how to compute the products with the Hessian. If None, by :func:`hessian`, and the
        third derivatives exactly, too. For a loss without forward-mode derivatives, pass
        ``functools.partial(measures.hessian, hvp=flatreg.reverse_hvp)``. With any ``curvature``,
        differences of its products replace the third derivatives, which affects only where the
        search goes. With finite-difference products, the value contains their error, so it is an
        estimate and not a lower bound, and ``floor`` does not include that error.

    Returns:
      :class:`HessianLipschitz`.

    Raises:
      ValueError: if the radius is not positive, or ``starts`` or ``steps`` is below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, -2.0]) * w**3)  # ∇²L = diag(6 a w)
      >>> found = measures.hessian_lipschitz(loss_fn, jnp.ones(2), jax.random.key(0), 0.5)
      >>> print(f"{found.value:.4f}")  # 6 max|a|
      12.0000

    References:
      Wang et al., `Identifying Generalization Properties in Neural Networks
      <https://arxiv.org/abs/1809.07402>`_, 2018.
    """
    if is_number(radius) and not 0 < radius < float("inf"):
        raise ValueError(
            f"radius must be positive and finite, got {radius}: for example, write radius=0.1."
        )
    if min(starts, steps) < 1:
        raise ValueError(
            f"starts and steps must be at least 1, got {starts} and {steps}: for example, write "
            "starts=4, steps=20."
        )
    params = in_float32_or_wider(params)
    check_loss("hessian_lipschitz", loss_fn, params)
    center, to_tree = ravel_pytree(params)
    products = checked_products(curvature)

    def product(x: jax.Array, v: jax.Array) -> jax.Array:
        return to_vector(products(loss_fn, to_tree(x))(to_tree(v)))

    # Differences over the largest displacement have the smallest rounding error.
    length = None if curvature is None else jnp.asarray(radius, center.dtype)
    hessian = _LocalHessian(product, center, length)

    def search(start: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        fraction, key = start
        found = _search(hessian, (fraction * radius).astype(center.dtype), key, steps)
        return found.ratio, found.best_delta

    fractions = jnp.arange(1, starts + 1) / starts
    values, deltas = jax.lax.map(search, (fractions, jax.random.split(key, starts)))
    winner = jnp.argmax(values)
    value, delta = values[winner], deltas[winner]
    floor = _rounding_floor(hessian, delta, jax.random.fold_in(key, starts), steps)
    if not isinstance(value, jax.core.Tracer):
        _warn_near_floor(float(value), float(floor), radius)
    return HessianLipschitz(value, to_tree(delta), values, floor)


class _LocalHessian(NamedTuple):
    """The Hessian at points near the center θ, on flat vectors."""

    product: Callable[[jax.Array, jax.Array], jax.Array]  # (x, v) ↦ ∇²L(x) v
    center: jax.Array
    length: jax.Array | None  # of the differences; None for exact third derivatives

    def change(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """(∇²L(x) − ∇²L(θ)) v."""
        return self.product(x, v) - self.product(self.center, v)

    def third_derivative(self, x: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
        """∇³L(x)[u, v], the gradient of uᵀ∇²L(x)v, or along it."""
        if self.length is not None:
            ahead, behind = x + self.length * v, x - self.length * v
            return self.product(ahead, u) - self.product(behind, u)
        along = explained(with_forward_mode(lambda v: jax.jvp(self.product_with(u), (x,), (v,))[1]))
        derivative: jax.Array = along(v)
        return derivative

    def product_with(self, u: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """x ↦ ∇²L(x) u."""
        return lambda x: self.product(x, u)


class _Search(NamedTuple):
    """The loop carry of the search from one start."""

    delta: jax.Array  # the displacement δ
    v: jax.Array  # a unit vector, near the top eigenvector of ∇²L(θ+δ) − ∇²L(θ)
    best_delta: jax.Array  # the displacement with the largest ratio so far
    ratio: jax.Array  # that ratio


def _search(hessian: _LocalHessian, length: jax.Array, key: jax.Array, steps: int) -> _Search:
    """The search from one random direction of the given length."""
    center = hessian.center
    direction, v = jax.random.normal(key, (2, center.size), center.dtype)
    delta = length * unit(direction)

    def step(carry: _Search, _: None) -> tuple[_Search, None]:
        return _search_step(hessian, length, carry), None

    first = _Search(delta, unit(v), (center + delta) - center, jnp.zeros((), center.dtype))
    found: _Search = jax.lax.scan(step, first, None, length=steps)[0]
    return found


def _search_step(hessian: _LocalHessian, length: jax.Array, carry: _Search) -> _Search:
    """Improves u and v at this δ, keeps the ratio if it is the largest so far, then moves δ."""
    delta, v, best_delta, ratio = carry
    point = hessian.center + delta
    moved = point - hessian.center  # δ after the rounding of θ + δ
    u = unit(hessian.change(point, v))
    change = hessian.change(point, u)
    v = unit(change)
    distance = norm(moved)
    new_ratio = norm(change) / jnp.where(distance == 0, 1, distance)
    better = ~(new_ratio <= ratio)  # true for NaN too
    uphill = unit(hessian.third_derivative(point, u, v))
    return _Search(
        delta=jnp.where(jnp.any(uphill != 0), length * uphill, delta),
        v=v,
        best_delta=jnp.where(better, moved, best_delta),
        ratio=jnp.where(better, new_ratio, ratio),
    )


def _rounding_floor(
    hessian: _LocalHessian, delta: jax.Array, key: jax.Array, steps: int
) -> jax.Array:
    """eps·‖∇²L(θ)‖/‖δ‖, with the norm from power iteration. It is infinite for δ = 0."""
    center = hessian.center
    v = unit(jax.random.normal(key, center.shape, center.dtype))
    v = jax.lax.fori_loop(0, steps, lambda _, v: unit(hessian.product(center, v)), v)
    floor = float(np.finfo(center.dtype).eps) * norm(hessian.product(center, v)) / norm(delta)
    return jnp.where(delta.any(), floor, jnp.inf)


def _warn_near_floor(value: float, floor: float, radius: float | jax.Array) -> None:
    if value < NEAR_FLOOR * floor:
        warnings.warn(
            f"ρ ≈ {value:.2g} cannot be distinguished from the rounding error of the Hessian, "
            f"about {floor:.2g} at radius={radius}. Unless ρ is known to be small, use a larger "
            "radius, or float64 (jax.enable_x64) for params and data.",
            stacklevel=3,
        )
