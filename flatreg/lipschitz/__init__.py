"""Lipschitz control: tools to measure and control how strongly outputs react to inputs.

The norm of a convolution depends on its linear map, which its kernel alone does not determine.
:func:`linear_maps` finds the linear maps of a model::

    maps = lipschitz.linear_maps(model.apply, variables, x)
    sigma = lipschitz.spectral_norm(kernel, maps["params/Conv_0/kernel"])
    print(sigma.lower, sigma.upper)

The functions do not call ``jax.jit``, so every call outside ``jit`` compiles their loops again. To
measure kernels repeatedly, compile once per kernel shape::

    spectral_norm = jax.jit(lipschitz.spectral_norm, static_argnames=("linear_map", "steps"))

The folders:

    operators    what a layer does to its input, as a linear map
    norms        norms of linear maps
    networks     Lipschitz bounds of whole networks, and certificates
    control      penalties, projections and normalization of kernels during training
    inputs       gradients with respect to the input

They import each other in one direction only: ``operators`` ← ``norms`` ← ``networks``, ``control``;
and ``inputs`` ← ``networks``. Two files are below all folders: ``programs.py``, which walks through
jaxprs, and ``batch_functions.py``, which checks functions of a batch.
"""

from flatreg.lipschitz.batch_functions import BatchFn
from flatreg.lipschitz.control.kernels import Operators, Where
from flatreg.lipschitz.control.normalization import (
    spectral_normalization_state,
    spectral_normalize,
)
from flatreg.lipschitz.control.penalties import orthogonality_penalty, spectral_norm_penalty
from flatreg.lipschitz.control.power_state import PowerState
from flatreg.lipschitz.control.projections import project_norm, project_spectral_norm
from flatreg.lipschitz.inputs.gradient_penalties import (
    input_gradient_penalty,
    interpolated_gradient_penalty,
)
from flatreg.lipschitz.inputs.sensitivity import (
    InputSensitivity,
    geometric_complexity,
    input_sensitivity,
)
from flatreg.lipschitz.networks.certificates import certified_accuracy, certified_radius
from flatreg.lipschitz.networks.lipschitz_bound import LipschitzBound, lipschitz_bound
from flatreg.lipschitz.networks.lipschitz_lower_bound import (
    LipschitzLowerBound,
    lipschitz_lower_bound,
)
from flatreg.lipschitz.norms.matrix_norms import frobenius_norm, induced_norm
from flatreg.lipschitz.norms.power_iteration import power_iteration
from flatreg.lipschitz.norms.spectral_norm import Interval, spectral_norm
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.function import Linear
from flatreg.lipschitz.operators.linear import LinearMap
from flatreg.lipschitz.operators.linear_maps import linear_maps
from flatreg.lipschitz.operators.masked import Masked
from flatreg.lipschitz.operators.stacked import Stacked

__all__ = [
    "BatchFn",
    "Convolution",
    "Dense",
    "InputSensitivity",
    "Interval",
    "Linear",
    "LinearMap",
    "LipschitzBound",
    "LipschitzLowerBound",
    "Masked",
    "Operators",
    "PowerState",
    "Stacked",
    "Where",
    "certified_accuracy",
    "certified_radius",
    "frobenius_norm",
    "geometric_complexity",
    "induced_norm",
    "input_gradient_penalty",
    "input_sensitivity",
    "interpolated_gradient_penalty",
    "linear_maps",
    "lipschitz_bound",
    "lipschitz_lower_bound",
    "orthogonality_penalty",
    "power_iteration",
    "project_norm",
    "project_spectral_norm",
    "spectral_norm",
    "spectral_norm_penalty",
    "spectral_norm_upper_bound",
    "spectral_normalization_state",
    "spectral_normalize",
]
