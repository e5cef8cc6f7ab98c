"""Surrogates: the losses that the methods descend, with shifts that are constants.

A surrogate maps a loss and a vector to a number, by ``jax.grad`` and algebra on flat vectors. The
gradient of the surrogate is the direction that the method must return.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Loss: TypeAlias = Callable[[jax.Array], jax.Array]
Surrogate: TypeAlias = Callable[[Loss, jax.Array], jax.Array]
Scale: TypeAlias = Callable[[jax.Array], jax.Array]


def stop(x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x)


def normalized(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x)


def ones(w: jax.Array) -> jax.Array:
    return jnp.ones_like(w)


def shifted(w: jax.Array, uphill: jax.Array, rho: float, scale: Any = 1.0) -> jax.Array:
    """w + sg(ρ T²u/‖Tu‖)."""
    return w + stop(rho * scale * normalized(scale * uphill))


def sam(rho: float, scale: Scale = ones) -> Surrogate:
    return lambda loss, w: loss(shifted(w, jax.grad(loss)(w), rho, stop(scale(w))))


def asam(rho: float, eta: float) -> Surrogate:
    return sam(rho, lambda w: jnp.abs(w) + eta)


def penalized_gradient(r: float, alpha: float, scale: Scale = ones) -> Surrogate:
    return lambda loss, w: (1 - alpha) * loss(w) + alpha * sam(r, scale)(loss, w)


def penalized_gradient_unit(r: float, alpha: float) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        clean = stop(normalized(jax.grad(loss)(w))) @ w
        return (1 - alpha) * clean + alpha * sam(r)(loss, w)

    return surrogate


def gradient_norm_penalty(penalty: float, p: float, scale: Scale = ones) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        scaled = jnp.abs(stop(scale(w)) * jax.grad(loss)(w))
        return loss(w) + penalty * jnp.sum(scaled**p) ** (1 / p)

    return surrogate


def gradient_regularization(mu: float, scale: Scale = ones) -> Surrogate:
    return lambda loss, w: loss(w) + mu * jnp.sum((stop(scale(w)) * jax.grad(loss)(w)) ** 2)


def gam(rho: float, alpha: float, scale: Scale = ones) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        t = stop(scale(w))

        def scaled_gradient_norm(w: jax.Array) -> jax.Array:
            return jnp.linalg.norm(t * jax.grad(loss)(w))

        worst = shifted(w, jax.grad(scaled_gradient_norm)(w), rho, t)
        return loss(w) + alpha * rho * scaled_gradient_norm(worst)

    return surrogate


def gam_accelerated(
    rho: float,
    rho_prime: float,
    alpha: float,
    beta: float,
    gamma: float,
    clean_weight: float | None = None,
    scale: Scale = ones,
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


def sam_and_gam(rho: float, radius: float, alpha: float) -> Surrogate:
    both = sam(rho), gam(radius, alpha)
    return lambda loss, w: sum(surrogate(loss, w) for surrogate in both) - loss(w)


def perturbed_gradient(sigma: float, z: float, scale: Scale = ones) -> Surrogate:
    return lambda loss, w: loss(w + stop(scale(w)) * sigma * z)


def perturbed_gradient_antithetic(sigma: float, z: float) -> Surrogate:
    return lambda loss, w: (loss(w + sigma * z) + loss(w - sigma * z)) / 2


def gsam(rho: float, alpha: float, scale: Scale = ones) -> Surrogate:
    """g̃ − α(g − c g̃) with c = ⟨g, g̃⟩/‖g̃‖² is the gradient of (1 + αc) L̃ − αL."""

    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        grad = jax.grad(loss)
        worst = shifted(w, grad(w), rho, stop(scale(w)))
        c = stop(grad(w) @ grad(worst) / (grad(worst) @ grad(worst)))
        return (1 + alpha * c) * loss(worst) - alpha * loss(w)

    return surrogate


def stable_sam(rho: float, scale: Scale = ones) -> Surrogate:
    def surrogate(loss: Loss, w: jax.Array) -> jax.Array:
        grad = jax.grad(loss)
        worst = shifted(w, grad(w), rho, stop(scale(w)))
        return stop(jnp.linalg.norm(grad(w)) / jnp.linalg.norm(grad(worst))) * loss(worst)

    return surrogate


def sam_on_the_first_step(rho: float, scale: Scale = ones, **unused: float) -> Surrogate:
    """The surrogate of methods that differ from SAM only on later steps."""
    del unused
    return sam(rho, scale)
