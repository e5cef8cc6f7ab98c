"""Surrogate gap guided SAM (GSAM): SAM without the part of g that the SAM gradient does not reduce.

d = g̃ − α g^⊥ with g̃ = ∇L(θ + ρĝ), where g^⊥ = g − ⟨g, g̃⟩ g̃/‖g̃‖² is the part of g orthogonal to g̃

The step along g̃ decreases the perturbed loss. The step against g^⊥ does not change the perturbed
loss to first order, and it increases the loss L(θ), which decreases the surrogate gap L(θ + ρĝ) −
L(θ). A step costs two gradients.

Zhuang et al., 'Surrogate Gap Minimization Improves Sharpness-Aware Training', ICLR 2022,
arXiv 2203.08065.
"""

from typing import Any

import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scale, checked_scale, is_number
from flatreg._core.directions import from_direction
from flatreg._core.tree import inner, mix, shift, unit
from flatreg.typing import GradFn, Grads, Method, Params, Scalar, ScalarOrSchedule, Scale


def gsam(
    rho: ScalarOrSchedule = 0.05,
    alpha: ScalarOrSchedule = 0.4,
    *,
    scale: Scale | None = None,
) -> Method:
    r"""Surrogate gap guided SAM (GSAM): replaces g by g̃ − α (g − ⟨g, g̃⟩ g̃/‖g̃‖²).

    Here g̃ = ∇L(θ + ε) is SAM's gradient with ε = ρ T²g/‖Tg‖. The method descends
    L(θ + sg(ε)) − α (L(θ) − sg(c) L(θ + sg(ε))) with c = ⟨g, g̃⟩/‖g̃‖², where sg (stop-gradient)
    means that its argument is treated as a constant in differentiation. ``alpha=0`` is SAM.

    In the paper, the radius follows the learning rate: pass ``rho=flatreg.radius_schedule(...)``.

    This differs from the implementation in pytorch_optimizer as follows:

    1. Norms are computed in the dtype of the parameters, or in float32 if it is narrower, and no
       constant is added to them. There, the norm in the shift is computed in float32 for all
       dtypes, and 1e-12 is added.
    2. :func:`flatreg.radius_schedule` limits the learning rate to [η_min, η_max].

    Args:
      rho: the radius ρ ≥ 0 of the ball in parameter space, a number or a schedule.
      alpha: the weight α ≥ 0 of the part of g that is orthogonal to g̃, a number or a schedule. The
        paper uses 0.4 for vision transformers on ImageNet.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.

    Returns:
      A transformation that costs two gradients per step. Its ``update`` needs ``params`` and
      ``grad_fn``.

    Raises:
      ValueError: if ``rho`` or ``alpha`` is a negative Python number.
      TypeError: if ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.gsam(rho=0.5, alpha=1.0)
      >>> d, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print([round(float(x), 3) for x in d])
      [2.916, 13.503]

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.
    """
    check_nonnegative(rho=rho, alpha=alpha)
    check_scale(scale)

    def direction(
        grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar, alpha: Scalar
    ) -> Grads:
        ahead = grad_fn(shift(params, g, rho, checked_scale(scale, params)))
        along = unit(ahead)
        return mix((1, ahead), (-alpha, g), (alpha * inner(g, along), along))  # g̃ − α g^⊥

    return from_direction(direction, rho=rho, alpha=alpha)


def radius_schedule(
    learning_rate: optax.Schedule,
    rho_max: Scalar,
    rho_min: Scalar = 0.0,
    *,
    learning_rate_max: Scalar,
    learning_rate_min: Scalar = 0.0,
) -> optax.Schedule:
    r"""A schedule for the radius that follows the learning rate, as in GSAM.

    ρₜ = ρ_min + (ρ_max − ρ_min) (ηₜ − η_min) / (η_max − η_min), where ηₜ is the learning rate of
    step t. A learning rate outside [η_min, η_max] counts as the nearest end of this interval.

    Args:
      learning_rate: the schedule of the learning rate, which the optimizer uses too.
      rho_max: the radius at the largest learning rate, at least 0.
      rho_min: the radius at the smallest learning rate, at least 0.
      learning_rate_max: the largest learning rate η_max.
      learning_rate_min: the smallest learning rate η_min, below ``learning_rate_max``.

    Returns:
      A schedule: pass it as ``rho`` to any method.

    Raises:
      TypeError: if ``learning_rate`` is not a schedule.
      ValueError: if a radius is a negative Python number, or if ``learning_rate_max`` is not above
        ``learning_rate_min``.

    Examples:
      >>> import optax, flatreg
      >>> learning_rate = optax.cosine_decay_schedule(0.1, decay_steps=1000)
      >>> rho = flatreg.radius_schedule(learning_rate, 0.4, 0.2, learning_rate_max=0.1)
      >>> tx = optax.chain(flatreg.gsam(rho), optax.sgd(learning_rate, momentum=0.9))
      >>> print([round(float(rho(step)), 2) for step in (0, 500, 1000)])
      [0.4, 0.3, 0.2]

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.
    """
    if not callable(learning_rate):
        raise TypeError(
            f"learning_rate must be an optax schedule, got {learning_rate!r}: write "
            "flatreg.radius_schedule(optax.cosine_decay_schedule(0.1, 1000), 0.05, "
            "learning_rate_max=0.1)."
        )
    check_nonnegative(rho_max=rho_max, rho_min=rho_min)
    both = learning_rate_max, learning_rate_min
    if all(map(is_number, both)) and not learning_rate_min < learning_rate_max:
        raise ValueError(
            f"learning_rate_max must be above learning_rate_min, got {learning_rate_max} and "
            f"{learning_rate_min}: for a constant learning rate, write rho={rho_max}."
        )

    def schedule(step: Any) -> Any:
        share = (learning_rate(step) - learning_rate_min) / (learning_rate_max - learning_rate_min)
        return rho_min + (rho_max - rho_min) * jnp.clip(share, 0, 1)

    return schedule
