"""Measures of how flat a minimum is: curvature, flatness, robustness and PAC-Bayes bounds.

A measure takes a loss ``loss_fn(params) -> scalar`` and the parameters at which to measure it.
:func:`dataset_loss` makes such a loss from a loss on a batch and a whole data set::

    loss_fn = measures.dataset_loss(batch_loss, (x, y), batch_size=1000)
    top = measures.top_eigenpairs(loss_fn, params, jax.random.key(0), k=5)
    print(top.values, top.residuals)

There is one folder per kind of measure:

* ``spectrum``: eigenpairs, trace, diagonal, density and Lipschitz constant of the Hessian.
* ``flatness``: R⁰ and R¹, the largest rise of the loss and the largest gradient in a ball;
  worst-case sharpness; the local learning coefficient.
* ``edge_of_stability``: the sharpness relative to the threshold of the optimizer, along a training.
* ``robustness``: the loss under random noise on the weights.
* ``landscape``: the loss along lines and planes in weight space, and between two solutions.
* ``pac_bayes``: generalization bounds, the noise level σ and the PACGen metric Ψ.
* ``implicit_regularization``: modified losses, gradient flow and gradient noise.

**Compilation.** The measures do not call ``jax.jit``, so every call outside ``jit`` compiles its
loops again. To compile a measure once for all parameters, call ``jax.jit`` yourself. A
:func:`dataset_loss` is a pytree, so it can be an argument of the jitted function. A loss that is a
plain Python function cannot, so let the jitted function close over it::

    jax.jit(partial(measures.top_eigenpairs, k=5))(loss_fn, params, key)
    jax.jit(lambda params, key: measures.top_eigenpairs(loss_fn, params, key, k=5))(params, key)

**Precision.** Parameters are converted to at least float32, and matrix products of the measures
themselves run in full precision. The loss itself is differentiated as written: inside it, GPUs may
round matrix products to TF32 and TPUs to bfloat16, unless you set
``jax.config.update("jax_default_matmul_precision", "highest")``.
"""

from flatreg.measures.dataset import BatchLossFn, LossFn, dataset_loss
from flatreg.measures.edge_of_stability.batch_sharpness import batch_sharpness
from flatreg.measures.edge_of_stability.critical_sharpness import critical_sharpness
from flatreg.measures.edge_of_stability.stability import Stability, stability
from flatreg.measures.edge_of_stability.tracker import (
    StabilityHistory,
    StabilityRecord,
    stability_tracker,
)
from flatreg.measures.estimate import Estimate
from flatreg.measures.flatness.ball_ascent import Flatness
from flatreg.measures.flatness.gradient_norm import gradient_norm
from flatreg.measures.flatness.learning_coefficient import (
    LearningCoefficient,
    local_learning_coefficient,
)
from flatreg.measures.flatness.normalized_logits import normalized_logits
from flatreg.measures.flatness.worst_case import WorstCase, worst_case_sharpness
from flatreg.measures.flatness.zeroth_and_first_order import (
    first_order_flatness,
    zeroth_and_first_order_flatness,
    zeroth_order_flatness,
)
from flatreg.measures.implicit_regularization.gradient_flow import gradient_flow
from flatreg.measures.implicit_regularization.gradient_noise import (
    GradientStatistics,
    gradient_statistics,
)
from flatreg.measures.implicit_regularization.modified_loss import (
    modified_loss,
    modified_minibatch_loss,
)
from flatreg.measures.implicit_regularization.regularizer import (
    ImplicitRegularizer,
    implicit_gradient_regularizer,
    implicit_rate,
)
from flatreg.measures.landscape.barrier import Barrier, barrier
from flatreg.measures.landscape.batch_statistics import with_batch_statistics
from flatreg.measures.landscape.bezier_path import BezierPath, bezier_path, bezier_point
from flatreg.measures.landscape.slices import filter_normalized, interpolate, loss_slice
from flatreg.measures.pac_bayes.bound import pacbayes_bound
from flatreg.measures.pac_bayes.noise_level import NoiseLevel, pacbayes_sigma
from flatreg.measures.pac_bayes.pacgen import Pacgen, pacgen
from flatreg.measures.pac_bayes.uniform_noise import expected_loss_bound, optimal_noise, uniform_kl
from flatreg.measures.robustness.weight_noise import expected_sharpness, noise_robustness
from flatreg.measures.spectrum.curvature import Curvature, gauss_newton, hessian, restrict
from flatreg.measures.spectrum.density import Density, density_on_grid, spectral_density
from flatreg.measures.spectrum.eigenpairs import Eigenpairs, top_eigenpairs
from flatreg.measures.spectrum.hessian_lipschitz import HessianLipschitz, hessian_lipschitz
from flatreg.measures.spectrum.per_block import per_block
from flatreg.measures.spectrum.trace_and_diagonal import diagonal, trace

__all__ = [
    "Barrier",
    "BatchLossFn",
    "BezierPath",
    "Curvature",
    "Density",
    "Eigenpairs",
    "Estimate",
    "Flatness",
    "GradientStatistics",
    "HessianLipschitz",
    "ImplicitRegularizer",
    "LearningCoefficient",
    "LossFn",
    "NoiseLevel",
    "Pacgen",
    "Stability",
    "StabilityHistory",
    "StabilityRecord",
    "WorstCase",
    "barrier",
    "batch_sharpness",
    "bezier_path",
    "bezier_point",
    "critical_sharpness",
    "dataset_loss",
    "density_on_grid",
    "diagonal",
    "expected_loss_bound",
    "expected_sharpness",
    "filter_normalized",
    "first_order_flatness",
    "gauss_newton",
    "gradient_flow",
    "gradient_norm",
    "gradient_statistics",
    "hessian",
    "hessian_lipschitz",
    "implicit_gradient_regularizer",
    "implicit_rate",
    "interpolate",
    "local_learning_coefficient",
    "loss_slice",
    "modified_loss",
    "modified_minibatch_loss",
    "noise_robustness",
    "normalized_logits",
    "optimal_noise",
    "pacbayes_bound",
    "pacbayes_sigma",
    "pacgen",
    "per_block",
    "restrict",
    "spectral_density",
    "stability",
    "stability_tracker",
    "top_eigenpairs",
    "trace",
    "uniform_kl",
    "with_batch_statistics",
    "worst_case_sharpness",
    "zeroth_and_first_order_flatness",
    "zeroth_order_flatness",
]
