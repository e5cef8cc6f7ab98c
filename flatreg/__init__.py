"""Training at flat minima with JAX and Optax.

A method is a *direction*: a pure function ``(grad_fn, params, g) -> d`` of the parameters, the
gradient g, and a gradient oracle ``grad_fn``, which computes the gradient of the same loss on the
same batch at other parameters. The direction d replaces the gradient as the first link of an Optax
chain::

    tx = optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1))
    loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    params = optax.apply_updates(params, updates)

This module contains the methods, the combinators and the gradient oracle. The packages below are
imported lazily, when they are first accessed as an attribute of ``flatreg``, because some of them
require more than JAX and Optax:

- ``flatreg.measures``: flatness, curvature and generalization measures of a trained model.
- ``flatreg.lipschitz``: Lipschitz bounds of layers and networks, and ways to control them.
- ``flatreg.linen`` and ``flatreg.nnx``: train states and train steps for both APIs of Flax.
- ``flatreg.checkpoint``: save and restore train states.
- ``flatreg.plots``: figures of the measures.

The types are in ``flatreg.typing``. The methods are in ``flatreg.methods``, one file per paper, and
the wrappers, which need one gradient per step, in ``flatreg.wrappers``.
"""

from typing import TYPE_CHECKING

from flatreg._core.combinators import (
    WhenSharpState,
    after,
    combine,
    every,
    randomly,
    when_sharp,
)
from flatreg._core.directions import DirectionState, from_direction, from_stateful_direction
from flatreg._core.functional import functional_value_and_grad_fn
from flatreg._core.hvp import exact_hvp, finite_difference_hvp, forward_hvp, reverse_hvp
from flatreg._core.observe import Observation, observe
from flatreg._core.oracle import value_and_grad_fn
from flatreg._core.per_shard import per_shard
from flatreg._core.scale import on
from flatreg.methods import (
    CurvatureScale,
    CurvatureState,
    FriendlySAMState,
    LookSAMState,
    asam,
    friendly_sam,
    gam,
    gam_accelerated,
    gradient_norm_penalty,
    gradient_regularization,
    gsam,
    looksam,
    penalized_gradient,
    perturbed_gradient,
    radius_schedule,
    sam,
    stable_sam,
)
from flatreg.typing import (
    Direction,
    GradFn,
    Hvp,
    Method,
    ScalarOrSchedule,
    Scale,
    StatefulDirection,
)
from flatreg.wrappers import (
    RevisitState,
    ShiftedState,
    batch_fingerprint,
    eval_params,
    momentum_sam,
    previous_gradient_sam,
    revisit,
    revisited,
)

if TYPE_CHECKING:
    from flatreg import checkpoint as checkpoint
    from flatreg import linen as linen
    from flatreg import lipschitz as lipschitz
    from flatreg import measures as measures
    from flatreg import nnx as nnx
    from flatreg import plots as plots
else:  # Hidden from type checkers, which would otherwise accept every attribute.

    def __getattr__(name):
        if name not in _PACKAGES:
            raise AttributeError(f"module 'flatreg' has no attribute {name!r}")
        import importlib

        return importlib.import_module(f"flatreg.{name}")


__version__ = "0.2.0"

__all__ = [
    "CurvatureScale",
    "CurvatureState",
    "Direction",
    "DirectionState",
    "FriendlySAMState",
    "GradFn",
    "Hvp",
    "LookSAMState",
    "Method",
    "Observation",
    "RevisitState",
    "ScalarOrSchedule",
    "Scale",
    "ShiftedState",
    "StatefulDirection",
    "WhenSharpState",
    "__version__",
    "after",
    "asam",
    "batch_fingerprint",
    "combine",
    "eval_params",
    "every",
    "exact_hvp",
    "finite_difference_hvp",
    "forward_hvp",
    "friendly_sam",
    "from_direction",
    "from_stateful_direction",
    "functional_value_and_grad_fn",
    "gam",
    "gam_accelerated",
    "gradient_norm_penalty",
    "gradient_regularization",
    "gsam",
    "looksam",
    "momentum_sam",
    "observe",
    "on",
    "penalized_gradient",
    "per_shard",
    "perturbed_gradient",
    "previous_gradient_sam",
    "radius_schedule",
    "randomly",
    "reverse_hvp",
    "revisit",
    "revisited",
    "sam",
    "stable_sam",
    "value_and_grad_fn",
    "when_sharp",
]

# The packages that are imported lazily, and the module that must be installed for each of them.
_PACKAGES = {
    "checkpoint": "orbax",
    "linen": "flax",
    "lipschitz": "jax",
    "measures": "jax",
    "nnx": "flax",
    "plots": "matplotlib",
}


def __dir__() -> list[str]:
    from importlib.util import find_spec

    installed = {name for name, needs in _PACKAGES.items() if find_spec(needs)}
    return sorted({*__all__, *installed, "methods", "typing", "wrappers", "__all__", "__doc__"})
