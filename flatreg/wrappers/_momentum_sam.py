"""Momentum-SAM (MSAM): the perturbation comes from the momentum of the optimizer.

w̃ = w − ρ v/‖v‖, v ← μv + ∇L(w̃), w ← w − ηv

The momentum v replaces the gradient in SAM's perturbation, and the sign is the opposite of SAM's:
the parameters look ahead along the step. For AdamW, v is the first moment. A step costs one
gradient.

Becker, Altrock and Risse, 'Momentum-SAM: Sharpness Aware Minimization without Computational
Overhead', 2024, arXiv 2401.12033.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import alike, check_function
from flatreg.typing import Method, Params, ScalarOrSchedule, Scale
from flatreg.wrappers._shifted import shifted


def momentum_sam(
    base: optax.GradientTransformation,
    rho: ScalarOrSchedule = 0.3,
    *,
    scale: Scale | None = None,
    momentum: Callable[[optax.OptState], Params] | None = None,
) -> Method:
    r"""Momentum-SAM (MSAM): steps along ∇L(w − ρ T²v/‖Tv‖), where v is the optimizer's momentum.

    The parameters that training sees are w̃ = w − ρ T²v/‖Tv‖. The first step is plain, because the
    momentum is zero. Use :func:`flatreg.eval_params` for evaluation. The wrapper must be the last
    link of a chain, because everything after it would change the shift.

    This differs from the authors' code as follows:

    1. The optimizer ``base`` sees the clean parameters w, so weight decay acts on them. In their
       SGD, weight decay acts on w̃.
    2. The shift has length ρ exactly, because no constant is added to ‖v‖ in the denominator.

    Args:
      base: an optimizer with momentum, such as ``optax.sgd(0.1, momentum=0.9)`` or
        ``optax.adamw(1e-3)``, or a chain that contains one.
      rho: the radius ρ ≥ 0 of the shift in parameter space, a number or a schedule. Step t uses the
        radius of step t. The paper uses values from 0.3 to 3.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf, evaluated at
        the clean parameters; None means T = 1. Leaves with a factor of zero are not shifted.
      momentum: a function from the state of ``base`` to the momentum v, a tree like the parameters.
        None takes the only ``trace`` (``optax.trace``, ``optax.sgd``) or ``mu`` (``optax.adamw``,
        ``optax.lion``) in the state.

    Returns:
      A transformation whose ``update`` needs ``params`` and the gradient at ``params``. A step
      costs one gradient, and the state contains one copy of the parameters.

    Raises:
      TypeError: if ``base`` is not a transformation, if ``rho`` is not a number, 0-d array or
        schedule, or if ``scale`` or ``momentum`` is not a function.
      ValueError: if ``rho`` is a negative Python number; in ``init``, if the momentum cannot be
        found in the state of ``base``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatreg.momentum_sam(optax.sgd(0.5, momentum=0.9), rho=5.0)
      >>> updates, state = tx.update(grad_fn(w), tx.init(w), w)
      >>> w = optax.apply_updates(w, updates)
      >>> print(w, flatreg.eval_params(state, w))  # (1.5, 2) − 5 (3, 4)/5
      [-1.5 -2. ] [1.5 2. ]

    References:
      Becker et al., `Momentum-SAM: Sharpness Aware Minimization without Computational Overhead
      <https://arxiv.org/abs/2401.12033>`_, 2024.
    """
    check_function("momentum", momentum, "a function opt_state -> momentum")
    momentum_of = momentum or _only_momentum
    tx = shifted(
        "momentum_sam", base, rho, scale, lambda _, opt_state: momentum_of(opt_state), sign=-1
    )

    def init(params: Params) -> Any:
        state: Any = tx.init(params)
        _check_momentum(momentum_of(state.inner_state), params)
        return state

    return Method(init, tx.update)


def _only_momentum(opt_state: optax.OptState) -> Params:
    """The only ``trace`` or ``mu`` in the state of an optimizer."""
    names = "trace", "mu"
    found = [x for name in names for _, x in optax.tree.get_all_with_path(opt_state, name)]
    if len(found) != 1:
        raise ValueError(
            f"momentum_sam found {len(found)} momenta (fields trace or mu) in the state of the "
            "optimizer, but needs exactly one: use an optimizer with momentum, such as "
            "flatreg.momentum_sam(optax.sgd(0.1, momentum=0.9)), or say where the momentum is with "
            "momentum=lambda opt_state: opt_state[0].trace."
        )
    return found[0]


def _check_momentum(momentum: Any, params: Params) -> None:
    if not alike(momentum, params):
        raise ValueError(
            "momentum_sam needs a momentum with the structure and shapes of params, got "
            f"{jax.tree.map(jnp.shape, momentum)}. An optimizer inside optax.masked or "
            "optax.partition has a momentum for some of the leaves only. Put the mask inside the "
            "loss, or pass momentum=lambda opt_state: <a tree like params>."
        )
