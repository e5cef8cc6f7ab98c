"""Training at flat minima with JAX and Optax.

A method is a *direction*: a pure function ``(grad_fn, params, g) -> d``, built from gradients and
Hessian-vector products of one oracle ``grad_fn``. It replaces the gradient as the first link of an
Optax chain::

    tx = optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    params = optax.apply_updates(params, updates)

The packages beside it load when they are first named, for some of them need more than JAX and
Optax: ``flatreg.linen``, ``flatreg.nnx``, ``flatreg.measures``, ``flatreg.lipschitz``,
``flatreg.plots``, ``flatreg.checkpoint``.
"""

from typing import TYPE_CHECKING

from flatreg._core.combinators import after as after
from flatreg._core.combinators import combine as combine
from flatreg._core.combinators import every as every
from flatreg._core.combinators import randomly as randomly
from flatreg._core.directions import DirectionState as DirectionState
from flatreg._core.directions import from_direction as from_direction
from flatreg._core.directions import from_stateful_direction as from_stateful_direction
from flatreg._core.hvp import exact_hvp as exact_hvp
from flatreg._core.hvp import finite_difference_hvp as finite_difference_hvp
from flatreg._core.hvp import forward_hvp as forward_hvp
from flatreg._core.hvp import reverse_hvp as reverse_hvp
from flatreg._core.observe import Observation as Observation
from flatreg._core.observe import observe as observe
from flatreg._core.oracle import value_and_grad_fn as value_and_grad_fn
from flatreg._core.per_shard import per_shard as per_shard
from flatreg.methods._gam import gam as gam
from flatreg.methods._gam import gam_accelerated as gam_accelerated
from flatreg.methods._gradient_regularization import (
    gradient_regularization as gradient_regularization,
)
from flatreg.methods._penalized_gradient import gradient_norm_penalty as gradient_norm_penalty
from flatreg.methods._penalized_gradient import penalized_gradient as penalized_gradient
from flatreg.methods._perturbed_gradient import CurvatureScale as CurvatureScale
from flatreg.methods._perturbed_gradient import CurvatureState as CurvatureState
from flatreg.methods._perturbed_gradient import perturbed_gradient as perturbed_gradient
from flatreg.methods._sam import asam as asam
from flatreg.methods._sam import sam as sam
from flatreg.typing import Direction as Direction
from flatreg.typing import GradFn as GradFn
from flatreg.typing import Hvp as Hvp
from flatreg.typing import ScalarOrSchedule as ScalarOrSchedule
from flatreg.typing import Scale as Scale
from flatreg.typing import StatefulDirection as StatefulDirection

if TYPE_CHECKING:
    from flatreg import checkpoint as checkpoint
    from flatreg import linen as linen
    from flatreg import lipschitz as lipschitz
    from flatreg import measures as measures
    from flatreg import nnx as nnx
    from flatreg import plots as plots
else:  # Type checkers would take every name for one of these.

    def __getattr__(name):
        if name not in _PACKAGES:
            raise AttributeError(f"module 'flatreg' has no attribute {name!r}")
        import importlib

        return importlib.import_module(f"flatreg.{name}")


__version__ = "0.2.0"

_PACKAGES = {"checkpoint", "linen", "lipschitz", "measures", "nnx", "plots"}


def __dir__() -> list[str]:
    return sorted((globals().keys() | _PACKAGES) - {"TYPE_CHECKING"})
