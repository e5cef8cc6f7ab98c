"""Slide: half of each batch was in the last batch, and the step climbs along its last gradient.

batch of step t: the halves Aₜ and Aₜ₊₁, with gradients a and b at θₜ + εₜ
θₜ₊₁ = θₜ − η (a + b)/2,  εₜ₊₁ = ρ b/‖b‖

Aₜ₊₁ is seen again in step t + 1, so the shift belongs to half of the batch. A step takes the
gradients of two halves, which cost one gradient, and every example is seen twice in a row.
"""

from typing import Any

import jax
import numpy as np
import optax

import flatreg
from flatreg.linen import TrainState


def slide(base: optax.GradientTransformation, rho: Any) -> Any:
    """Shifts along the `updates` and steps along the gradient `whole`; see `train_step`."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return base.update(extra["whole"], state, params)

    inner = optax.GradientTransformationExtraArgs(base.init, update)
    return flatreg.previous_gradient_sam(inner, rho)


def train_step(state: TrainState, batch: Any) -> tuple[TrainState, None]:
    """A training step of a network without BatchNorm and dropout."""

    def loss(params: Any, half: Any) -> jax.Array:
        x, labels = half
        logits = state.apply_fn({"params": params}, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    halves = jax.tree.map(lambda x: x.reshape(2, len(x) // 2, *x.shape[1:]), batch)
    both = jax.vmap(jax.grad(loss), in_axes=(None, 0))(state.params, halves)
    whole, second = (jax.tree.map(one, both) for one in (lambda g: g.mean(0), lambda g: g[1]))
    tx: Any = state.tx
    updates, opt_state = tx.update(second, state.opt_state, state.params, whole=whole)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), None


def sliding(order: np.ndarray) -> np.ndarray:
    """Returns batches that each begin with the second half of the batch before."""
    halves = np.concatenate([order, order[:1]]).reshape(2 * len(order) + 2, -1)
    return np.concatenate([halves[:-2], halves[1:-1]], axis=1)
