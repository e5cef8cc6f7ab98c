"""Implicit gradient regularization: what gradient descent descends because its steps are finite.

Gradient descent θ ← θ − h∇L(θ) leaves the flow θ̇ = −∇L by O(h²) a step and follows, up to O(h³),
the flow of the modified loss

    L̃ = L + (h/4)‖∇L‖² = L + λ R_IG,    λ = hm/4,    R_IG = ‖∇L‖²/m,    m parameters.

So ``gradient_flow(modified_loss(loss_fn, h), params, times)`` against the flow of ``loss_fn`` tells
what the finite step adds. The truncation fails as hλ_max → 2.

Barrett and Dherin, 'Implicit Gradient Regularization', ICLR 2021, arXiv 2009.11162; for minibatches
Smith, Dherin, Barrett and De, 'On the Origin of Implicit Regularization in Stochastic Gradient
Descent', ICLR 2021, arXiv 2101.12176.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.checks import check_nonnegative, is_scalar
from flatreg._core.tree import inner, norm
from flatreg.measures.dataset import LossFn
from flatreg.measures.inputs import check_loss, leading_axis
from flatreg.measures.spectrum.curvature import widened
from flatreg.typing import Params, Scalar


class ImplicitRegularizer(NamedTuple):
    """How much gradient descent's implicit penalty weighs at a point.

    Attributes:
      value: R_IG = ‖∇L‖²/m.
      slope: ‖∇L‖ = √(m R_IG), the tangent of the angle at which the loss surface (θ, L(θ)) rises.
      parameters: m; a float above 2³¹, where the int32 of a jitted function's result ends.
    """

    value: jax.Array
    slope: jax.Array
    parameters: float


def implicit_gradient_regularizer(loss_fn: LossFn, params: Params) -> ImplicitRegularizer:
    r"""R_IG(θ) = ‖∇L(θ)‖²/m: the implicit gradient regularizer. One gradient.

    Args:
      loss_fn: ``params -> L``, a scalar. R_IG is defined on the loss over all of the data:
        ``measures.dataset_loss``.
      params: θ, a tree of floating-point arrays, m numbers altogether.

    Returns:
      R_IG and the slope ‖∇L‖, scalars of at least float32, and m.

    Raises:
      TypeError: if the loss returns no floating-point scalar, or ``params`` holds integers.

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
    params = widened(params)
    check_loss("implicit_gradient_regularizer", loss_fn, params)
    slope, m = norm(jax.grad(loss_fn)(params)), _count(params)
    return ImplicitRegularizer(slope**2 / float(m), slope, m if m < 2**31 else float(m))


def implicit_rate(step_size: Scalar, params: Params) -> Scalar:
    r"""λ = hm/4: the weight of R_IG in L̃ = L + λ R_IG.

    Args:
      step_size: h ≥ 0, the learning rate of plain gradient descent.
      params: the tree of m parameters.

    Returns:
      λ, in units of a learning rate.

    Raises:
      ValueError: if ``step_size`` is a negative Python number.
      TypeError: if ``step_size`` is no scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> measures.implicit_rate(0.5, {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)})
      1.0

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      ICLR 2021.
    """
    _check_step_size(step_size)
    return step_size * (_count(params) / 4)


def modified_loss(loss_fn: LossFn, step_size: Scalar) -> LossFn:
    r"""L̃ = L + (h/4)‖∇L‖²: the loss whose flow gradient descent with step h follows to O(h²).

    Its gradient is g + (h/2)Hg (two passes in reverse mode, 3 to 3.5 gradients); for training take
    ``flatreg.gradient_regularization(mu=h / 4)``, which descends the same loss.

    Args:
      loss_fn: ``params -> L``, a scalar, twice differentiable in reverse mode.
      step_size: h ≥ 0, the learning rate of plain gradient descent.

    Returns:
      ``params -> L̃``, a scalar of at least float32.

    Raises:
      ValueError: if ``step_size`` is a negative Python number.
      TypeError: if ``step_size`` is no scalar, or, from L̃, if the loss returns no scalar.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss = measures.modified_loss(lambda w: jnp.sum(w**2) / 2, step_size=0.5)
      >>> w = jnp.array([3.0, 4.0])
      >>> print(loss(w), jax.grad(loss)(w))  # (1 + h/2) ‖w‖²/2, (1 + h/2) w
      15.625 [3.75 5.  ]

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      ICLR 2021.
    """
    _check_step_size(step_size)

    def loss_tilde(params: Params) -> jax.Array:
        check_loss("modified_loss", loss_fn, params)
        loss, g = jax.value_and_grad(loss_fn)(params)
        value: jax.Array = loss + step_size / 4 * inner(g, g)  # L + (h/4)‖∇L‖²
        return value

    return loss_tilde


def modified_minibatch_loss(
    loss_fn: Callable[[Params, Any], jax.Array], step_size: Scalar, batches: Any
) -> LossFn:
    r"""L̃ = L + (h/4m) Σₖ‖∇L̂ₖ‖² = (1/m) Σₖ [L̂ₖ + (h/4)‖∇L̂ₖ‖²] over m minibatches, L = (1/m) Σₖ L̂ₖ.

    The mean, over all orders of the minibatches, of the iterate after an epoch of SGD follows the
    flow of L̃ for the time mh up to O(m³h³). The minibatches run one after another, with the memory
    of one, also in the gradient, which recomputes each.

    Args:
      loss_fn: ``loss_fn(params, batch) -> L̂``, a scalar, the mean over the batch.
      step_size: h ≥ 0, the learning rate of plain SGD.
      batches: a tree of arrays whose leading axis counts the m minibatches; a minibatch is what
        remains: features of shape (m, examples a batch, …).

    Returns:
      ``params -> L̃``, a scalar of at least float32.

    Raises:
      ValueError: if ``step_size`` is a negative Python number, or the leaves of ``batches`` do not
        share a leading axis.
      TypeError: if ``step_size`` is no scalar, or, from L̃, if the loss returns no scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> batches = jnp.array([[0.0, 2.0], [4.0, 6.0]])  # two minibatches of two examples
      >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2) / 2
      >>> loss = measures.modified_minibatch_loss(loss_fn, 0.5, batches)
      >>> print(loss(jnp.array(3.0)))  # 2.5 + (h/4)(2² + 2²)/2
      3.0

    References:
      Smith et al., `On the Origin of Implicit Regularization in Stochastic Gradient Descent
      <https://arxiv.org/abs/2101.12176>`_, ICLR 2021.
    """
    _check_step_size(step_size)
    count = leading_axis("modified_minibatch_loss", "batches", batches)
    batches = jax.tree.map(jnp.asarray, batches)

    first = jax.tree.map(lambda x: x[0], batches)

    def one(params: Params, batch: Any) -> jax.Array:
        return modified_loss(lambda params: loss_fn(params, batch), step_size)(params)

    recomputed = jax.checkpoint(one)

    def loss_tilde(params: Params) -> jax.Array:
        check_loss("modified_minibatch_loss", loss_fn, params, first)

        def add(total: jax.Array, batch: Any) -> tuple[jax.Array, None]:
            return total + recomputed(params, batch) / count, None

        zero = jnp.zeros((), jax.eval_shape(one, params, first).dtype)
        return jax.lax.scan(add, zero, batches)[0]

    return loss_tilde


def _count(params: Params) -> int:
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(params))


def _check_step_size(step_size: Any) -> None:
    if not is_scalar(step_size):
        raise TypeError(f"step_size must be one number, got {step_size!r}: step_size=0.1, say.")
    check_nonnegative(step_size=step_size)
