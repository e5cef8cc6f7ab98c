"""The modified loss, whose gradient flow describes gradient descent with finite steps.

Gradient descent θ ← θ − h∇L(θ) deviates from the flow θ̇ = −∇L by O(h²) per step. It deviates by
only O(h³) per step from the flow of the modified loss

    L̃ = L + (h/4)‖∇L‖².

The difference between ``gradient_flow(modified_loss(loss_fn, h), params, times)`` and the flow of
``loss_fn`` therefore shows the effect of the finite steps. The truncated expansion breaks down as
hλ_max → 2.

Barrett and Dherin, 'Implicit Gradient Regularization', ICLR 2021, arXiv 2009.11162; for minibatches
Smith, Dherin, Barrett and De, 'On the Origin of Implicit Regularization in Stochastic Gradient
Descent', ICLR 2021, arXiv 2101.12176.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import inner, mix
from flatreg.measures.checks import (
    check_batch_loss,
    check_loss,
    check_numbers,
    checked_leading_axis,
)
from flatreg.measures.dataset import BatchLossFn, LossFn
from flatreg.measures.spectrum.curvature import Curvature, checked_products, explained
from flatreg.typing import Grads, Params, Scalar


def modified_loss(
    loss_fn: LossFn, step_size: Scalar, *, curvature: Curvature | None = None
) -> LossFn:
    r"""The modified loss L̃ = L + (h/4)‖∇L‖². Its gradient flow approximates gradient descent.

    With the step size h, the flow of L̃ and gradient descent differ by O(h²) after a fixed time.
    The gradient of L̃ is g + (h/2)Hg. It needs two reverse-mode passes and costs 3 to 3.5
    gradients. To train with this loss, use ``flatreg.gradient_regularization(mu=h / 4)``, which
    descends the same loss.

    Args:
      loss_fn: the loss, ``params -> scalar``, twice differentiable in reverse mode.
      step_size: h ≥ 0, the learning rate of plain gradient descent.
      curvature: how to compute Hg in the gradient of L̃. If None, by differentiating L̃. For a loss
        that cannot be differentiated twice, pass ``functools.partial(measures.hessian,
        hvp=flatreg.finite_difference_hvp(0.01))``. The value of L̃ does not depend on it.

    Returns:
      The function ``params -> L̃``, a scalar in at least float32.

    Raises:
      ValueError: if ``step_size`` is a negative Python number.
      TypeError: if ``step_size`` is not a number or 0-d array, or, when L̃ is called, if the loss
        does not return a scalar.

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
    check_numbers(step_size=step_size)
    one = _ModifiedLoss(loss_fn, step_size, curvature)
    return one.value if curvature is None else _with_gradient(one.value, one.value_and_gradient)


def modified_minibatch_loss(
    loss_fn: BatchLossFn,
    step_size: Scalar,
    batches: Any,
    *,
    curvature: Curvature | None = None,
) -> LossFn:
    r"""The modified loss of SGD over m minibatches, L̃ = L + (h/4m) Σₖ‖∇L̂ₖ‖² with L = (1/m) Σₖ L̂ₖ.

    Equivalently L̃ = (1/m) Σₖ [L̂ₖ + (h/4)‖∇L̂ₖ‖²]. After one epoch of SGD, the mean of the iterate
    over all orders of the minibatches equals the flow of L̃ at time mh, up to O(m³h³).

    The minibatches are processed one after another, and memory holds only one of them. The same is
    true for the gradient, because it recomputes each minibatch.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      step_size: h ≥ 0, the learning rate of plain SGD.
      batches: a tree of arrays whose leading axis indexes the m minibatches, for example features
        with the shape (m, examples per batch, …).
      curvature: how to compute Hg in the gradient of L̃, as for :func:`modified_loss`. If None, by
        differentiating L̃.

    Returns:
      The function ``params -> L̃``, a scalar in at least float32.

    Raises:
      ValueError: if ``step_size`` is a negative Python number, or the leaves of ``batches`` have
        different leading axes.
      TypeError: if ``step_size`` is not a number or 0-d array, or, when L̃ is called, if the loss
        does not return a scalar.

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
    check_numbers(step_size=step_size)
    split = "jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), (x, labels))"
    count = checked_leading_axis("modified_minibatch_loss", "batches", batches, split)
    batches = jax.tree.map(jnp.asarray, batches)
    first = jax.tree.map(lambda x: x[0], batches)

    def on(batch: Any) -> _ModifiedLoss:
        return _ModifiedLoss(lambda params: loss_fn(params, batch), step_size, curvature)

    recomputed = jax.checkpoint(lambda params, batch: on(batch).value(params))

    def mean(of_batch: Callable[[Params, Any], Any], params: Params) -> Any:
        """The mean of a function over the minibatches."""
        check_batch_loss("modified_minibatch_loss", loss_fn, params, first)

        def add(total: Any, batch: Any) -> tuple[Any, None]:
            return optax.tree.add(total, _over(count, of_batch(params, batch))), None

        zeros = optax.tree.zeros_like(jax.eval_shape(of_batch, params, first))
        return jax.lax.scan(add, zeros, batches)[0]

    def loss_tilde(params: Params) -> jax.Array:
        value: jax.Array = mean(recomputed, params)
        return value

    if curvature is None:
        return loss_tilde
    return _with_gradient(
        loss_tilde,
        lambda params: mean(lambda params, batch: on(batch).value_and_gradient(params), params),
    )


class _ModifiedLoss(NamedTuple):
    """The modified loss L + (h/4)‖∇L‖² of one loss L, and its gradient g + (h/2)Hg."""

    loss_fn: LossFn
    step_size: Scalar
    curvature: Curvature | None

    def value(self, params: Params) -> jax.Array:
        return self._value_and_g(params)[0]

    def value_and_gradient(self, params: Params) -> tuple[jax.Array, Grads]:
        value, g = self._value_and_g(params)
        product = checked_products(self.curvature)(self.loss_fn, params)
        return value, mix((1, g), (self.step_size / 2, product(g)))  # g + (h/2)Hg

    def _value_and_g(self, params: Params) -> tuple[jax.Array, Grads]:
        check_loss("modified_loss", self.loss_fn, params)
        loss, g = explained(jax.value_and_grad(self.loss_fn))(params)
        return loss + self.step_size / 4 * inner(g, g), g  # L + (h/4)‖∇L‖²


def _over(count: int, tree: Any) -> Any:
    return jax.tree.map(lambda x: x / count, tree)


def _with_gradient(
    loss: LossFn, value_and_gradient: Callable[[Params], tuple[jax.Array, Grads]]
) -> LossFn:
    """The loss with a given gradient, in place of the derivatives of its operations."""
    with_gradient = jax.custom_jvp(loss)

    @with_gradient.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (params,), (change,) = primals, tangents
        value, gradient = value_and_gradient(params)
        return value, inner(gradient, change).astype(value.dtype)

    return with_gradient
