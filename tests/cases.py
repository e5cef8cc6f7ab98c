"""The registry of methods: a new method is one row here, and every property test runs on it.

A row names the method, its factory and hyperparameters, and the surrogate loss whose gradient it
must return, written on a flat vector with nothing but ``jax.grad`` and algebra.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import flatreg

Loss = Callable[[jax.Array], jax.Array]
Surrogate = Callable[[Loss, jax.Array], jax.Array]


class Case(NamedTuple):
    """One method and what is known about it.

    Attributes:
      name: what the tests call it.
      factory: makes the method from ``scalars``; takes ``hvp=`` as well if ``uses_hvp``.
      surrogate_of: makes the surrogate from ``scalars``.
      scalars: hyperparameters far from neutral; each also takes a schedule.
      zero: the changes of ``scalars`` that leave the plain gradient.
      calls: of ``grad_fn`` in one step, beyond the caller's clean pass.
      isotropic: whether the method commutes with rotations of the parameters.
      uses_hvp: whether the method differentiates ``grad_fn``.
    """

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    surrogate_of: Callable[..., Surrogate]
    scalars: dict[str, float]
    zero: dict[str, float]
    calls: int
    isotropic: bool = True
    uses_hvp: bool = False

    def make(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The method, with some arguments changed."""
        return self.factory(**self.scalars | changes)

    def neutral(self) -> optax.GradientTransformationExtraArgs:
        """The method with its radius or penalty at zero."""
        return self.make(**self.zero)

    def surrogate(self, loss: Loss, w: jax.Array, **changes: float) -> jax.Array:
        """The loss that the method descends, at the vector w."""
        return self.surrogate_of(**self.scalars | changes)(loss, w)


def stop(x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x)


def normalized(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x)


def ones(w: jax.Array) -> jax.Array:
    return jnp.ones_like(w)


def absolute(w: Any) -> Any:
    """T = |w| + 0.1, for trees and vectors."""
    return jax.tree.map(lambda x: jnp.abs(x) + 0.1, w)


def shifted(w: jax.Array, uphill: jax.Array, rho: float, scale: Any = 1.0) -> jax.Array:
    """w + sg(ρ T²u/‖Tu‖)."""
    return w + stop(rho * scale * normalized(scale * uphill))


def sam_surrogate(rho: float, scale: Callable[[jax.Array], jax.Array] = ones) -> Surrogate:
    return lambda loss, w: loss(shifted(w, jax.grad(loss)(w), rho, stop(scale(w))))


def asam_surrogate(rho: float, eta: float) -> Surrogate:
    return sam_surrogate(rho, lambda w: jnp.abs(w) + eta)


def pgn_surrogate(
    r: float, alpha: float, scale: Callable[[jax.Array], jax.Array] = ones
) -> Surrogate:
    return lambda loss, w: (1 - alpha) * loss(w) + alpha * sam_surrogate(r, scale)(loss, w)


def pgn_unit_surrogate(r: float, alpha: float) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        clean = stop(normalized(jax.grad(loss)(w))) @ w
        return (1 - alpha) * clean + alpha * sam_surrogate(r)(loss, w)

    return surrogate


def norm_surrogate(penalty: float, p: float) -> Surrogate:
    return lambda loss, w: loss(w) + penalty * jnp.sum(jnp.abs(jax.grad(loss)(w)) ** p) ** (1 / p)


def egr_surrogate(mu: float) -> Surrogate:
    return lambda loss, w: loss(w) + mu * jnp.sum(jax.grad(loss)(w) ** 2)


def gam_surrogate(rho: float, alpha: float) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        uphill = jax.grad(lambda w: jnp.linalg.norm(jax.grad(loss)(w)))(w)
        return loss(w) + alpha * rho * jnp.linalg.norm(jax.grad(loss)(shifted(w, uphill, rho)))

    return surrogate


def accelerated_surrogate(
    rho: float,
    rho_prime: float,
    alpha: float,
    beta: float,
    gamma: float,
    clean_weight: float | None = None,
    scale: Callable[[jax.Array], jax.Array] = ones,
) -> Surrogate:
    """h₊ − γ(h₋ − c h₊) with c = ⟨h₋, h₊⟩/‖h₊‖² is the gradient of (1 + γc) L₊ − γ L₋."""
    weight = beta if clean_weight is None else clean_weight

    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        grad, t = jax.grad(loss), stop(scale(w))
        first = shifted(w, grad(w), rho_prime, t)
        worst = shifted(w, grad(first) - grad(w), rho, t)
        last = shifted(worst, grad(worst), rho_prime, t)
        plus = alpha * loss(first) + (1 - alpha) * loss(last)
        minus = weight * loss(w) + (1 - beta) * loss(worst)
        h_plus = alpha * grad(first) + (1 - alpha) * grad(last)
        h_minus = weight * grad(w) + (1 - beta) * grad(worst)
        c = stop(h_minus @ h_plus / (h_plus @ h_plus))
        return (1 + gamma * c) * plus - gamma * minus

    return surrogate


def sam_and_gam(rho: Any, radius: Any, alpha: Any, **kwargs: Any) -> Any:
    return flatreg.combine(flatreg.sam(rho), flatreg.gam(radius, alpha, **kwargs))


def sam_and_gam_surrogate(rho: float, radius: float, alpha: float) -> Surrogate:
    both = sam_surrogate(rho), gam_surrogate(radius, alpha)
    return lambda loss, w: sum(surrogate(loss, w) for surrogate in both) - loss(w)


PGN = {"r": 0.3, "alpha": 0.8}
ACCELERATED = {"rho": 0.2, "rho_prime": 0.1, "alpha": 0.6, "beta": 0.5, "gamma": 0.3}
NO_RADIUS = {"rho": 0.0, "rho_prime": 0.0, "gamma": 0.0}
partial = functools.partial

CASES = [
    Case("sam", flatreg.sam, sam_surrogate, {"rho": 0.3}, {"rho": 0.0}, calls=1),
    Case(
        "sam_scaled",
        partial(flatreg.sam, scale=absolute),
        partial(sam_surrogate, scale=absolute),
        {"rho": 0.3},
        {"rho": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "asam",
        flatreg.asam,
        asam_surrogate,
        {"rho": 0.3, "eta": 0.1},
        {"rho": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "penalized_gradient",
        flatreg.penalized_gradient,
        pgn_surrogate,
        PGN,
        {"r": 0.0},
        calls=1,
    ),
    Case(
        "penalized_gradient_scaled",
        partial(flatreg.penalized_gradient, scale=absolute),
        partial(pgn_surrogate, scale=absolute),
        PGN,
        {"alpha": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "penalized_gradient_unit",
        partial(flatreg.penalized_gradient, normalize_clean=True),
        pgn_unit_surrogate,
        PGN,
        {"r": 0.0, "alpha": 1.0},
        calls=1,
    ),
    *(
        Case(
            f"gradient_norm_penalty_{p}",
            partial(flatreg.gradient_norm_penalty, ord=p),
            partial(norm_surrogate, p=p),
            {"penalty": 0.2},
            {"penalty": 0.0},
            calls=1,
            isotropic=p == 2,
            uses_hvp=True,
        )
        for p in (1, 1.5, 2, 3, 4)
    ),
    Case(
        "gradient_regularization",
        flatreg.gradient_regularization,
        egr_surrogate,
        {"mu": 0.1},
        {"mu": 0.0},
        calls=1,
        uses_hvp=True,
    ),
    Case(
        "gam",
        flatreg.gam,
        gam_surrogate,
        {"rho": 0.3, "alpha": 0.5},
        {"alpha": 0.0},
        calls=2,
        uses_hvp=True,
    ),
    Case(
        "gam_accelerated",
        flatreg.gam_accelerated,
        accelerated_surrogate,
        ACCELERATED,
        NO_RADIUS,
        calls=3,
    ),
    Case(
        "gam_accelerated_authors",
        partial(flatreg.gam_accelerated, scale=absolute),
        partial(accelerated_surrogate, scale=absolute),
        ACCELERATED | {"clean_weight": 1.0},
        NO_RADIUS,
        calls=3,
        isotropic=False,
    ),
    Case(
        "combine",
        sam_and_gam,
        sam_and_gam_surrogate,
        {"rho": 0.3, "radius": 0.2, "alpha": 0.5},
        {"rho": 0.0, "radius": 0.0},
        calls=3,
        uses_hvp=True,
    ),
]
