"""How fast the Hessian changes around a point: its local Lipschitz constant ρ.

    ‖∇²L(θ+δ) − ∇²L(θ)‖₂ ≤ ρ‖δ‖,  ‖δ‖ ≤ r    ⟹    L(θ+δ) ≤ L + gᵀδ + ½δᵀ∇²L δ + ρ‖δ‖³/6

The ratio is a trilinear form to lowest order, uᵀ(∇³L δ)v/‖δ‖, so u, v and δ take turns: two power
iterations on ∇²L(θ+δ) − ∇²L(θ), then δ along ∇³L(θ+δ)[u, v], where uᵀ∇²L(θ+δ)v grows the fastest.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flatreg._core.checks import is_number
from flatreg._core.tree import norm, unit
from flatreg.measures.dataset import LossFn
from flatreg.measures.spectrum.curvature import widened
from flatreg.typing import Grads, Params

NEAR_FLOOR = 10  # times the floor; below it the value may be rounding alone


class HessianLipschitz(NamedTuple):
    """A lower bound of ρ and the point that certifies it.

    Attributes:
      value: the largest ‖(∇²L(θ+δ) − ∇²L(θ))u‖/‖δ‖ found, u a unit vector.
      perturbation: its δ, a tree like the parameters.
      values: what each start led to, shape (starts,); their spread tells how sure the maximum is.
      floor: eps·‖∇²L‖/‖δ‖, about what rounding alone makes of the value; of float32's eps, unless
        the parameters are float64.
    """

    value: jax.Array
    perturbation: Grads
    values: jax.Array
    floor: jax.Array


def hessian_lipschitz(
    loss_fn: LossFn,
    params: Params,
    key: jax.Array,
    radius: float,
    *,
    starts: int = 4,
    steps: int = 20,
) -> HessianLipschitz:
    r"""ρ = max_{‖δ‖≤r} ‖∇²L(θ+δ) − ∇²L(θ)‖₂/‖δ‖, from below: the local Lipschitz constant of ∇²L.

    The search for δ is made here; the paper defines ρ over its box \|δᵢ\| ≤ κᵢ (from memory), which
    the ball of radius r = ‖κ‖ contains. A warning says so where the value is below ten times its
    rounding floor, as on a quadratic, unless traced: take a larger radius or float64.

    Args:
      loss_fn: ``params -> scalar``, see :func:`dataset_loss`; three times differentiable, or ρ
        misses the kinks (of ReLU).
      params: θ, the centre of the ball.
      key: draws the starts.
      radius: r > 0, in the units of the parameters.
      starts: random directions δ, of the lengths r/starts, …, r, which the search keeps.
      steps: of the search from each start; one costs four Hessian-vector products and one
        third derivative, 12 gradients on a small network.

    Returns:
      :class:`HessianLipschitz`. It bounds ρ from below: no bound that needs ρ is proven by it.

    Raises:
      ValueError: if the radius is not positive, or there are no starts or steps.

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
        raise ValueError(f"radius must be positive and finite, got {radius}: radius=0.1, say.")
    if min(starts, steps) < 1:
        raise ValueError(f"starts and steps must be at least 1, got {starts} and {steps}.")
    center, to_tree = ravel_pytree(widened(params))
    gradient = jax.grad(lambda x: loss_fn(to_tree(x)))

    def hvp(x: jax.Array, v: jax.Array) -> jax.Array:
        product: jax.Array = jax.jvp(gradient, (x,), (v,))[1]
        return product

    def search(start: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        fraction, key = start
        length = (fraction * radius).astype(center.dtype)
        delta, v = jax.random.normal(key, (2, center.size), center.dtype)

        def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
            delta, v, best, largest = carry
            there = center + delta
            moved = there - center  # δ as the rounding of θ + δ left it
            u = unit(hvp(there, v) - hvp(center, v))
            change = hvp(there, u) - hvp(center, u)
            v = unit(change)
            distance = norm(moved)
            ratio = norm(change) / jnp.where(distance == 0, 1, distance)
            better = ~(ratio <= largest)  # NaN too
            best = jnp.where(better, moved, best)
            largest = jnp.where(better, ratio, largest)
            uphill = unit(jax.jvp(lambda x: hvp(x, u), (there,), (v,))[1])  # ∇³L(θ+δ)[u, v]
            delta = jnp.where(jnp.any(uphill != 0), length * uphill, delta)
            return (delta, v, best, largest), None

        delta = length * unit(delta)
        there = center + delta
        carry = delta, unit(v), there - center, jnp.zeros((), center.dtype)
        (_, _, best, largest), _ = jax.lax.scan(step, carry, None, length=steps)
        return largest, best

    fractions = jnp.arange(1, starts + 1) / starts
    values, points = jax.lax.map(search, (fractions, jax.random.split(key, starts)))
    winner = jnp.argmax(values)
    v = jax.random.normal(jax.random.fold_in(key, starts), center.shape, center.dtype)
    v = jax.lax.fori_loop(0, steps, lambda i, v: unit(hvp(center, v)), unit(v))
    floor = float(np.finfo(center.dtype).eps) * norm(hvp(center, v)) / norm(points[winner])
    floor = jnp.where(points[winner].any(), floor, jnp.inf)
    value = values[winner]
    if not isinstance(value, jax.core.Tracer):
        _warn(float(value), float(floor), radius)
    return HessianLipschitz(value, to_tree(points[winner]), values, floor)


def _warn(value: float, floor: float, radius: float) -> None:
    if value < NEAR_FLOOR * floor:
        warnings.warn(
            f"ρ ≈ {value:.2g} cannot be told from the rounding of the Hessian, some {floor:.2g} at "
            f"radius={radius}: if that is no small ρ, take a larger radius, or float64 "
            "(jax.enable_x64) for params and data.",
            stacklevel=3,
        )
