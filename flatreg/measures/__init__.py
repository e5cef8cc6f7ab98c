"""How flat a minimum is, measured on any loss: curvature, flatness, robustness, with their errors.

A measure takes ``loss_fn(params) -> scalar`` and the parameters; :func:`dataset_loss` makes such a
loss of a whole data set::

    loss_fn = measures.dataset_loss(batch_loss, (x, y), batch_size=1000)
    top = measures.top_eigenpairs(loss_fn, params, jax.random.key(0), k=5)
    print(top.values, top.residuals)

Nothing is jitted inside, and loops are compiled anew at each call outside of ``jit``. This compiles
a measure once for all parameters, first of a :func:`dataset_loss`, which is a pytree and so may be
an argument, then of any function, which may not::

    jax.jit(partial(measures.top_eigenpairs, k=5))(loss_fn, params, key)
    jax.jit(lambda params, key: measures.top_eigenpairs(loss_fn, params, key, k=5))(params, key)

A measure is of the loss as it is computed. GPUs may round the products inside of it to TF32 and
TPUs to bfloat16; ``jax.config.update("jax_default_matmul_precision", "highest")`` keeps float32.
"""

from flatreg.measures.dataset import LossFn as LossFn
from flatreg.measures.dataset import dataset_loss as dataset_loss
from flatreg.measures.flatness.flatness import Flatness as Flatness
from flatreg.measures.flatness.flatness import first_order_flatness as first_order_flatness
from flatreg.measures.flatness.flatness import gradient_norm as gradient_norm
from flatreg.measures.flatness.flatness import zeroth_order_flatness as zeroth_order_flatness
from flatreg.measures.implicit_regularization.gradient_flow import gradient_flow as gradient_flow
from flatreg.measures.implicit_regularization.gradient_noise import (
    GradientStatistics as GradientStatistics,
)
from flatreg.measures.implicit_regularization.gradient_noise import (
    gradient_statistics as gradient_statistics,
)
from flatreg.measures.implicit_regularization.modified_loss import (
    ImplicitRegularizer as ImplicitRegularizer,
)
from flatreg.measures.implicit_regularization.modified_loss import (
    implicit_gradient_regularizer as implicit_gradient_regularizer,
)
from flatreg.measures.implicit_regularization.modified_loss import implicit_rate as implicit_rate
from flatreg.measures.implicit_regularization.modified_loss import modified_loss as modified_loss
from flatreg.measures.implicit_regularization.modified_loss import (
    modified_minibatch_loss as modified_minibatch_loss,
)
from flatreg.measures.landscape.slices import filter_normalized as filter_normalized
from flatreg.measures.landscape.slices import interpolate as interpolate
from flatreg.measures.landscape.slices import loss_slice as loss_slice
from flatreg.measures.pac_bayes.bound import NoiseLevel as NoiseLevel
from flatreg.measures.pac_bayes.bound import pacbayes_bound as pacbayes_bound
from flatreg.measures.pac_bayes.bound import pacbayes_sigma as pacbayes_sigma
from flatreg.measures.pac_bayes.pacgen import Pacgen as Pacgen
from flatreg.measures.pac_bayes.pacgen import expected_loss_bound as expected_loss_bound
from flatreg.measures.pac_bayes.pacgen import optimal_noise as optimal_noise
from flatreg.measures.pac_bayes.pacgen import pacgen as pacgen
from flatreg.measures.pac_bayes.pacgen import uniform_kl as uniform_kl
from flatreg.measures.robustness.noise import expected_sharpness as expected_sharpness
from flatreg.measures.robustness.noise import noise_robustness as noise_robustness
from flatreg.measures.spectrum.curvature import Curvature as Curvature
from flatreg.measures.spectrum.curvature import gauss_newton as gauss_newton
from flatreg.measures.spectrum.curvature import hessian as hessian
from flatreg.measures.spectrum.curvature import restrict as restrict
from flatreg.measures.spectrum.density import Density as Density
from flatreg.measures.spectrum.density import density_on_grid as density_on_grid
from flatreg.measures.spectrum.density import spectral_density as spectral_density
from flatreg.measures.spectrum.eigenpairs import Eigenpairs as Eigenpairs
from flatreg.measures.spectrum.eigenpairs import top_eigenpairs as top_eigenpairs
from flatreg.measures.spectrum.hessian_lipschitz import HessianLipschitz as HessianLipschitz
from flatreg.measures.spectrum.hessian_lipschitz import hessian_lipschitz as hessian_lipschitz
from flatreg.measures.spectrum.trace import Estimate as Estimate
from flatreg.measures.spectrum.trace import diagonal as diagonal
from flatreg.measures.spectrum.trace import trace as trace
