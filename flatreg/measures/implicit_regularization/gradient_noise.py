"""Gradient noise: how far the per-example gradients are from their mean.

For minibatches of B examples, drawn from N examples without replacement, this equation is exact:

    E‖g_B‖² = ‖g‖² + (N − B)/(N − 1) · Γ/B,    Γ = (1/N) Σᵢ ‖gᵢ − g‖² = tr Σ.

Therefore Γ determines how much larger the implicit penalty (h/4)‖g_B‖² of SGD is than that of
gradient descent, and Γ/‖g‖² is the batch size above which the noise matters little.

``optax.microbatching.micro_grad`` is not used for the gradients of single examples. It accumulates
a mean of what it computes from one gradient, such as ‖gᵢ‖², but Welford's recurrence also needs the
mean of the gradients before it. The difference (1/N) Σᵢ ‖gᵢ‖² − ‖g‖² cancels: for 128 gradients of
1000 ± 0.01, its error is 3,000 times the variance, and that of :func:`gradient_statistics` is
0.0005 of it. For 128 examples and an MLP 256-512-512-10, ``micro_grad`` takes 64 ms of CPU time and
2.8 MB, and this module 78 ms and 3.2 MB (``python -m benchmarks.step_cost --alternatives``, JAX
0.12).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import mix, norm, widened
from flatreg.measures.checks import check_batch_loss, checked_leading_axis
from flatreg.measures.dataset import BatchLossFn
from flatreg.typing import Grads, Params


class GradientStatistics(NamedTuple):
    """Statistics of the gradients of N examples.

    Attributes:
      norm: ‖g‖ with g = (1/N) Σᵢ gᵢ.
      variance: Γ = (1/N) Σᵢ ‖gᵢ − g‖² = tr Σ. The divisor is N.
      noise_scale: Γ/‖g‖² (``B_simple`` in the paper), in examples. It is infinite if g = 0, and NaN
        if Γ = 0 as well. It is accurate even if Γ and ‖g‖² overflow or underflow.
      examples: N.
    """

    norm: jax.Array
    variance: jax.Array
    noise_scale: jax.Array
    examples: int


def gradient_statistics(loss_fn: BatchLossFn, params: Params, examples: Any) -> GradientStatistics:
    r"""The norm of the gradient, the variance of the per-example gradients, and their ratio.

    With gᵢ the gradient on example i alone and g their mean, these are ‖g‖, Γ = (1/N) Σᵢ ‖gᵢ − g‖²
    and the gradient noise scale Γ/‖g‖².

    The cost is that of N gradients on one example. The examples are processed one after another in
    a ``lax.scan``, which keeps one gradient and the running mean in memory. The sum of squares uses
    Welford's recurrence, which avoids cancellation if Γ ≪ ‖g‖².

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch. It is called with
        batches of one example. The examples must be independent, so BatchNorm must not be in
        training mode.
      params: θ, a tree of floating-point arrays.
      examples: a tree of arrays whose leading axis indexes the N examples.

    Returns:
      :class:`GradientStatistics`: three scalars in at least float32, and N.

    Raises:
      TypeError: if the loss is not a floating-point scalar, or ``params`` contains integers.
      ValueError: if the leaves of ``examples`` have different leading axes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import measures
      >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2) / 2  # gᵢ = w − xᵢ
      >>> x = jnp.array([0.0, 2.0, 4.0, 6.0])
      >>> print(*measures.gradient_statistics(loss_fn, jnp.array(5.0), x))
      2.0 5.0 1.25 4

    References:
      McCandlish et al., `An Empirical Model of Large-Batch Training
      <https://arxiv.org/abs/1812.06162>`_, 2018 (the noise scale); Smith et al., `On the Origin of
      Implicit Regularization in Stochastic Gradient Descent <https://arxiv.org/abs/2101.12176>`_,
      ICLR 2021 (Γ).
    """
    count = checked_leading_axis("gradient_statistics", "examples", examples, "(x, labels)")
    batches = jax.tree.map(lambda x: jnp.expand_dims(x, 1), examples)  # N batches of one example
    first = jax.tree.map(lambda x: x[0], batches)
    check_batch_loss("gradient_statistics", loss_fn, params, first)
    grad_fn = jax.grad(loss_fn)

    def add(carry: _GradientMean, numbered: tuple[jax.Array, Any]) -> tuple[_GradientMean, None]:
        i, batch = numbered
        return carry.add(grad_fn(params, batch), i), None

    zeros = widened(optax.tree.zeros_like(params))
    zero = norm(zeros)
    numbers = jnp.arange(1, count + 1, dtype=zero.dtype)
    found, _ = jax.lax.scan(add, _GradientMean(zeros, zero), (numbers, batches))
    deviation = found.spread / count**0.5
    size = norm(found.mean)
    return GradientStatistics(size, deviation**2, (deviation / size) ** 2, count)


class _GradientMean(NamedTuple):
    """The running mean g of the gradients, and the spread √(Σ‖gᵢ − g‖²) about it.

    The spread is stored as a square root, because the squares of small gradients underflow.
    """

    mean: Grads
    spread: jax.Array

    def add(self, gradient: Grads, i: jax.Array) -> "_GradientMean":
        """Includes the i-th gradient: with d = gᵢ − g, g += d/i and Σ‖gᵢ − g‖² += ‖d‖²(i − 1)/i."""
        off = mix((1, gradient), (-1, self.mean))
        mean = optax.tree.cast_like(mix((1, self.mean), (1 / i, off)), self.mean)
        return _GradientMean(mean, jnp.hypot(self.spread, jnp.sqrt((i - 1) / i) * norm(off)))
