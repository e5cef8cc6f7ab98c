"""The implicit gradient regularizer R_IG = ‖∇L‖²/m and its rate λ, for m parameters.

Up to O(h³) per step, gradient descent with the step size h follows the flow of the modified loss

    L̃ = L + (h/4)‖∇L‖² = L + λ R_IG,    λ = hm/4,    R_IG = ‖∇L‖²/m.

Barrett and Dherin, 'Implicit Gradient Regularization', ICLR 2021, arXiv 2009.11162.
"""

from typing import NamedTuple

import jax
import numpy as np

from flatreg._core.tree import norm
from flatreg.measures.checks import check_loss, check_numbers
from flatreg.measures.dataset import LossFn
from flatreg.measures.weights import in_float32_or_wider
from flatreg.typing import Params, Scalar


class ImplicitRegularizer(NamedTuple):
    """The implicit regularizer of gradient descent at one point.

    Attributes:
      value: R_IG = ‖∇L‖²/m.
      slope: ‖∇L‖ = √(m R_IG), the tangent of the angle at which the loss surface (θ, L(θ)) rises.
      parameters: m, the number of parameters. It is a float if m ≥ 2³¹, because a jitted function
        returns integers as int32.
    """

    value: jax.Array
    slope: jax.Array
    parameters: float


def implicit_gradient_regularizer(loss_fn: LossFn, params: Params) -> ImplicitRegularizer:
    r"""The implicit gradient regularizer R_IG(θ) = ‖∇L(θ)‖²/m. It costs one gradient.

    Args:
      loss_fn: the loss, ``params -> scalar``. R_IG is defined for the loss over the whole data set;
        use :func:`dataset_loss`.
      params: θ, a tree of floating-point arrays with m numbers in total.

    Returns:
      :class:`ImplicitRegularizer`: R_IG and ‖∇L‖ in at least float32, and m.

    Raises:
      TypeError: if the loss is not a floating-point scalar, or ``params`` contains integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> w = jnp.array([3.0, 4.0])
      >>> print(*measures.implicit_gradient_regularizer(lambda w: jnp.sum(w**2) / 2, w))
      12.5 5.0 2

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      ICLR 2021.
    """
    params = in_float32_or_wider(params)
    check_loss("implicit_gradient_regularizer", loss_fn, params)
    slope, m = norm(jax.grad(loss_fn)(params)), _count(params)
    return ImplicitRegularizer(slope**2 / float(m), slope, m if m < 2**31 else float(m))


def implicit_rate(step_size: Scalar, params: Params) -> Scalar:
    r"""The implicit regularization rate λ = hm/4, the weight of R_IG in L̃ = L + λ R_IG.

    Args:
      step_size: h ≥ 0, the learning rate of plain gradient descent.
      params: a tree of m parameters.

    Returns:
      λ, in the same units as the learning rate.

    Raises:
      ValueError: if ``step_size`` is a negative Python number.
      TypeError: if ``step_size`` is not a number or 0-d array.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> measures.implicit_rate(0.5, {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)})
      1.0

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      ICLR 2021.
    """
    check_numbers(step_size=step_size)
    return step_size * (_count(params) / 4)


def _count(params: Params) -> int:
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(params))
