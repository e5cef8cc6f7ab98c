"""Wrappers: SAM's perturbation at the price of one gradient per step, one idea per file.

A method replaces the gradient and needs a second one. A wrapper takes the whole optimizer instead
and keeps the *parameters themselves* at a shifted point θ + ε, where the next gradient is computed
anyway. The update that it returns removes the old shift, makes the step of the optimizer and adds
the new shift::

    tx = flatreg.revisit(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)))
    updates, opt_state = tx.update(jax.grad(loss_fn)(params, batch), opt_state, params)
    params = optax.apply_updates(params, updates)
    clean = flatreg.eval_params(opt_state, params)  # for evaluation, averages and export

The wrappers differ in where ε comes from. All names are available as ``flatreg.<name>`` as well.
"""

from flatreg.wrappers._eval_params import eval_params
from flatreg.wrappers._momentum_sam import momentum_sam
from flatreg.wrappers._previous_gradient_sam import previous_gradient_sam
from flatreg.wrappers._revisit import RevisitState, batch_fingerprint, revisit, revisited
from flatreg.wrappers._shifted import ShiftedState

__all__ = [
    "RevisitState",
    "ShiftedState",
    "batch_fingerprint",
    "eval_params",
    "momentum_sam",
    "previous_gradient_sam",
    "revisit",
    "revisited",
]
