"""The registry of methods: a new method is one row here, and every property test runs on it.

A row names the method, how to make it, the surrogate loss whose gradient it must return (written
on a flat vector with nothing but ``jax.grad`` and algebra), and what a step costs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import flatreg

Loss = Callable[[jax.Array], jax.Array]
Surrogate = Callable[[Loss, jax.Array], jax.Array]


class Case(NamedTuple):
    """One method and what is known about it."""

    name: str
    make: Callable[[], optax.GradientTransformationExtraArgs]
    surrogate: Surrogate
    calls: int  # of grad_fn, traced once each, beyond the caller's clean pass
    neutral: Callable[[], optax.GradientTransformationExtraArgs]  # the radius or penalty at zero
    isotropic: bool = True  # commutes with rotations of the parameters
    uses_hvp: bool = False  # differentiates grad_fn


def stop(x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x)


def normalized(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x)


def shifted(loss: Loss, w: jax.Array, uphill: jax.Array, rho: float, scale=1.0) -> jax.Array:
    """w + sg(ρ T²u/‖Tu‖)."""
    return w + stop(rho * scale * normalized(scale * uphill))


def sam_surrogate(rho: float, scale=lambda w: jnp.ones_like(w)) -> Surrogate:
    return lambda loss, w: loss(shifted(loss, w, jax.grad(loss)(w), rho, stop(scale(w))))


def pgn_surrogate(r: float, alpha: float, scale=lambda w: jnp.ones_like(w)) -> Surrogate:
    sam = sam_surrogate(r, scale)
    return lambda loss, w: (1 - alpha) * loss(w) + alpha * sam(loss, w)


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
        worst = shifted(loss, w, uphill, rho)
        return loss(w) + alpha * rho * jnp.linalg.norm(jax.grad(loss)(worst))

    return surrogate


def accelerated_surrogate(
    rho: float,
    rho_prime: float,
    alpha: float,
    beta: float,
    gamma: float,
    clean_weight: float,
    scale=lambda w: jnp.ones_like(w),
) -> Surrogate:
    """h₊ − γ(h₋ − c h₊) with c = ⟨h₋, h₊⟩/‖h₊‖² is the gradient of (1 + γc) L₊ − γ L₋."""

    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        grad, t = jax.grad(loss), stop(scale(w))
        first = shifted(loss, w, grad(w), rho_prime, t)
        worst = shifted(loss, w, grad(first) - grad(w), rho, t)
        last = shifted(loss, worst, grad(worst), rho_prime, t)
        plus = alpha * loss(first) + (1 - alpha) * loss(last)
        minus = clean_weight * loss(w) + (1 - beta) * loss(worst)
        h_plus = alpha * grad(first) + (1 - alpha) * grad(last)
        h_minus = clean_weight * grad(w) + (1 - beta) * grad(worst)
        c = stop(h_minus @ h_plus / (h_plus @ h_plus))
        return (1 + gamma * c) * plus - gamma * minus

    return surrogate


def combined_surrogate(*surrogates: Surrogate) -> Surrogate:
    return lambda loss, w: sum(s(loss, w) for s in surrogates) - (len(surrogates) - 1) * loss(w)


def absolute(w):
    """T = |w| + 0.1, for trees and vectors."""
    return jax.tree.map(lambda x: jnp.abs(x) + 0.1, w)


CASES = [
    Case(
        "sam",
        lambda: flatreg.sam(0.3),
        sam_surrogate(0.3),
        calls=1,
        neutral=lambda: flatreg.sam(0.0),
    ),
    Case(
        "sam_scaled",
        lambda: flatreg.sam(0.3, scale=absolute),
        sam_surrogate(0.3, absolute),
        calls=1,
        neutral=lambda: flatreg.sam(0.0, scale=absolute),
        isotropic=False,
    ),
    Case(
        "asam",
        lambda: flatreg.asam(0.3, eta=0.1),
        sam_surrogate(0.3, absolute),
        calls=1,
        neutral=lambda: flatreg.asam(0.0),
        isotropic=False,
    ),
    Case(
        "penalized_gradient",
        lambda: flatreg.penalized_gradient(0.3, 0.8),
        pgn_surrogate(0.3, 0.8),
        calls=1,
        neutral=lambda: flatreg.penalized_gradient(0.0, 0.8),
    ),
    Case(
        "penalized_gradient_scaled",
        lambda: flatreg.penalized_gradient(0.3, 0.8, scale=absolute),
        pgn_surrogate(0.3, 0.8, absolute),
        calls=1,
        neutral=lambda: flatreg.penalized_gradient(0.3, 0.0, scale=absolute),
        isotropic=False,
    ),
    Case(
        "penalized_gradient_unit",
        lambda: flatreg.penalized_gradient(0.3, 0.8, normalize_clean=True),
        pgn_unit_surrogate(0.3, 0.8),
        calls=1,
        neutral=lambda: flatreg.penalized_gradient(0.0, 1.0, normalize_clean=True),
    ),
    *(
        Case(
            f"gradient_norm_penalty_{p}",
            lambda p=p: flatreg.gradient_norm_penalty(0.2, ord=p),
            norm_surrogate(0.2, p),
            calls=1,
            neutral=lambda p=p: flatreg.gradient_norm_penalty(0.0, ord=p),
            isotropic=p == 2,
            uses_hvp=True,
        )
        for p in (1, 1.5, 2, 3, 4)
    ),
    Case(
        "gradient_regularization",
        lambda: flatreg.gradient_regularization(0.1),
        egr_surrogate(0.1),
        calls=1,
        neutral=lambda: flatreg.gradient_regularization(0.0),
        uses_hvp=True,
    ),
    Case(
        "gam",
        lambda: flatreg.gam(0.3, 0.5),
        gam_surrogate(0.3, 0.5),
        calls=2,
        neutral=lambda: flatreg.gam(0.0, 0.5),
        uses_hvp=True,
    ),
    Case(
        "gam_accelerated",
        lambda: flatreg.gam_accelerated(0.2, 0.1, 0.6, 0.5, 0.3),
        accelerated_surrogate(0.2, 0.1, 0.6, 0.5, 0.3, clean_weight=0.5),
        calls=3,
        neutral=lambda: flatreg.gam_accelerated(0.0, 0.0, 0.6, 0.5, 0.0),
    ),
    Case(
        "gam_accelerated_authors",
        lambda: flatreg.gam_accelerated(0.2, 0.1, 0.6, 0.5, 0.3, clean_weight=1.0, scale=absolute),
        accelerated_surrogate(0.2, 0.1, 0.6, 0.5, 0.3, clean_weight=1.0, scale=absolute),
        calls=3,
        neutral=lambda: flatreg.gam_accelerated(0.0, 0.0, 0.6, 0.5, 0.0, clean_weight=1.0),
        isotropic=False,
    ),
    Case(
        "combine",
        lambda: flatreg.combine(flatreg.sam(0.3), flatreg.gam(0.2, 0.5)),
        combined_surrogate(sam_surrogate(0.3), gam_surrogate(0.2, 0.5)),
        calls=3,
        neutral=lambda: flatreg.combine(flatreg.sam(0.0), flatreg.gam(0.0, 0.5)),
        uses_hvp=True,
    ),
]
