"""Single-step SAM (S²-SAM): the perturbation comes from the gradient of the previous step.

g̃ₜ = ∇L(θₜ + ρ g̃ₜ₋₁/‖g̃ₜ₋₁‖), on the batch of step t; the first step is plain

A step costs one gradient. The previous gradient belongs to another batch, so the shift increases
the loss of the current batch only as far as the gradients of both batches agree.

'A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate
Sparse Training', NeurIPS 2024.
"""

import optax

from flatreg.typing import Method, ScalarOrSchedule, Scale
from flatreg.wrappers._shifted import shifted


def previous_gradient_sam(
    base: optax.GradientTransformation,
    rho: ScalarOrSchedule = 0.05,
    *,
    scale: Scale | None = None,
) -> Method:
    r"""Single-step SAM (S²-SAM): steps along ∇L(θ + ρ T²u/‖Tu‖), where u is the previous gradient.

    The parameters that training sees are θ + ε. The optimizer ``base`` sees the clean parameters θ,
    so weight decay acts on them. Use :func:`flatreg.eval_params` for evaluation. The wrapper must
    be the last link of a chain, because everything after it would change the shift.

    Args:
      base: the optimizer, for example ``optax.sgd(0.1, momentum=0.9)``, or a chain.
      rho: the radius ρ ≥ 0 of the shift in parameter space, a number or a schedule. Step t uses the
        radius of step t.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf, evaluated at
        the clean parameters; None means T = 1. Leaves with a factor of zero are not shifted.

    Returns:
      A transformation whose ``update`` needs ``params`` and the gradient at ``params``. A step
      costs one gradient, and the state contains one copy of the parameters.

    Raises:
      TypeError: if ``base`` is not a transformation, if ``rho`` is not a number, 0-d array or
        schedule, or if ``scale`` is not a function.
      ValueError: if ``rho`` is a negative Python number.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.previous_gradient_sam(optax.sgd(0.5), rho=5.0)
      >>> updates, state = tx.update(grad_fn(w), tx.init(w), w)
      >>> print(optax.apply_updates(w, updates))  # (1.5, 2) + 5 (3, 4)/5
      [4.5 6. ]

    References:
      Ji et al., `A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient
      and Accurate Sparse Training <https://openreview.net/forum?id=MJgMMqMDu4>`_, NeurIPS 2024.
    """
    return shifted("previous_gradient_sam", base, rho, scale, lambda updates, _: updates)
