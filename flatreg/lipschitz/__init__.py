"""How far an output moves with its input: norms of layers as they act, measured and controlled.

A kernel alone does not say what a convolution does. Its linear map does; a helper finds them::

    maps = lipschitz.linear_maps(model.apply, variables, x)
    sigma = lipschitz.spectral_norm(kernel, maps["params/Conv_0/kernel"])
    print(sigma.lower, sigma.upper)

Nothing is jitted inside, and loops are compiled anew at each call outside of ``jit``. For kernels
that are measured again, compile once for all of a shape::

    spectral_norm = jax.jit(lipschitz.spectral_norm, static_argnames=("linear_map", "steps"))
"""

from flatreg.lipschitz.control.kernels import Operators as Operators
from flatreg.lipschitz.control.kernels import PowerState as PowerState
from flatreg.lipschitz.control.kernels import Where as Where
from flatreg.lipschitz.control.normalization import (
    spectral_normalization_state as spectral_normalization_state,
)
from flatreg.lipschitz.control.normalization import spectral_normalize as spectral_normalize
from flatreg.lipschitz.control.penalties import orthogonality_penalty as orthogonality_penalty
from flatreg.lipschitz.control.penalties import spectral_norm_penalty as spectral_norm_penalty
from flatreg.lipschitz.control.projections import project_norm as project_norm
from flatreg.lipschitz.control.projections import project_spectral_norm as project_spectral_norm
from flatreg.lipschitz.inputs.gradient_penalties import BatchFn as BatchFn
from flatreg.lipschitz.inputs.gradient_penalties import (
    input_gradient_penalty as input_gradient_penalty,
)
from flatreg.lipschitz.inputs.gradient_penalties import (
    interpolated_gradient_penalty as interpolated_gradient_penalty,
)
from flatreg.lipschitz.inputs.sensitivity import InputSensitivity as InputSensitivity
from flatreg.lipschitz.inputs.sensitivity import geometric_complexity as geometric_complexity
from flatreg.lipschitz.inputs.sensitivity import input_sensitivity as input_sensitivity
from flatreg.lipschitz.networks.certificates import certified_accuracy as certified_accuracy
from flatreg.lipschitz.networks.certificates import certified_radius as certified_radius
from flatreg.lipschitz.networks.lower_bound import LipschitzLowerBound as LipschitzLowerBound
from flatreg.lipschitz.networks.lower_bound import lipschitz_lower_bound as lipschitz_lower_bound
from flatreg.lipschitz.networks.upper_bound import LipschitzBound as LipschitzBound
from flatreg.lipschitz.networks.upper_bound import lipschitz_bound as lipschitz_bound
from flatreg.lipschitz.norms.norms import Interval as Interval
from flatreg.lipschitz.norms.norms import frobenius_norm as frobenius_norm
from flatreg.lipschitz.norms.norms import induced_norm as induced_norm
from flatreg.lipschitz.norms.norms import spectral_norm as spectral_norm
from flatreg.lipschitz.norms.power_iteration import power_iteration as power_iteration
from flatreg.lipschitz.norms.upper_bounds import (
    spectral_norm_upper_bound as spectral_norm_upper_bound,
)
from flatreg.lipschitz.operators.convolution import Convolution as Convolution
from flatreg.lipschitz.operators.linear_maps import Dense as Dense
from flatreg.lipschitz.operators.linear_maps import Linear as Linear
from flatreg.lipschitz.operators.linear_maps import LinearMap as LinearMap
from flatreg.lipschitz.operators.tracing import linear_maps as linear_maps
