"""The methods, one paper per file. All of them are available as ``flatreg.<name>`` as well.

Each method consists of a short function ``(grad_fn, params, g) -> d`` that reads like the formula
of its paper, and a factory that turns this function into an Optax transformation. Methods never
import each other. The code that they share is in ``flatreg._core``.
"""

from flatreg.methods._asam import asam
from flatreg.methods._friendly_sam import FriendlySAMState, friendly_sam
from flatreg.methods._gam import gam, gam_accelerated
from flatreg.methods._gradient_regularization import gradient_regularization
from flatreg.methods._gsam import gsam, radius_schedule
from flatreg.methods._looksam import LookSAMState, looksam
from flatreg.methods._penalized_gradient import gradient_norm_penalty, penalized_gradient
from flatreg.methods._perturbed_gradient import CurvatureScale, CurvatureState, perturbed_gradient
from flatreg.methods._sam import sam
from flatreg.methods._stable_sam import stable_sam

__all__ = [
    "CurvatureScale",
    "CurvatureState",
    "FriendlySAMState",
    "LookSAMState",
    "asam",
    "friendly_sam",
    "gam",
    "gam_accelerated",
    "gradient_norm_penalty",
    "gradient_regularization",
    "gsam",
    "looksam",
    "penalized_gradient",
    "perturbed_gradient",
    "radius_schedule",
    "sam",
    "stable_sam",
]
