"""How far the gradients of single examples spread about their mean: Γ and the noise scale.

For minibatches of B examples, drawn from N without replacement,

    E‖g_B‖² = ‖g‖² + (N − B)/(N − 1) · Γ/B,    Γ = (1/N) Σᵢ ‖gᵢ − g‖² = tr Σ,

exactly: so Γ tells how much larger the implicit penalty (h/4)‖g_B‖² of SGD is than gradient
descent's, and Γ/‖g‖² from which batch size on the noise no longer matters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import mix, norm, widened
from flatreg.measures.inputs import check_loss, leading_axis
from flatreg.typing import Grads, Params


class GradientStatistics(NamedTuple):
    """The gradients of N examples, in four numbers.

    Attributes:
      norm: ‖g‖ with g = (1/N) Σᵢ gᵢ.
      variance: Γ = (1/N) Σᵢ ‖gᵢ − g‖² = tr Σ, the divisor being N.
      noise_scale: Γ/‖g‖² (``B_simple``), in examples; infinite where g = 0, NaN if also Γ = 0. It
        holds where Γ and ‖g‖² themselves are out of range.
      examples: N.
    """

    norm: jax.Array
    variance: jax.Array
    noise_scale: jax.Array
    examples: int


def gradient_statistics(
    loss_fn: Callable[[Params, Any], jax.Array], params: Params, examples: Any
) -> GradientStatistics:
    r"""‖g‖, Γ = (1/N) Σᵢ ‖gᵢ − g‖² and Γ/‖g‖², where gᵢ is the gradient on example i alone.

    Examples run one after another, by ``lax.scan``, with the memory of one gradient and the running
    mean; the sum of squares is Welford's, which does not cancel where Γ ≪ ‖g‖². N gradients of one
    example.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch. It is called with
        batches of one example. No BatchNorm in training mode: examples have to be independent.
      params: θ, a tree of floating-point arrays.
      examples: a tree of arrays whose leading axis counts the N examples.

    Returns:
      ‖g‖, Γ and the noise scale, scalars of at least float32, and N.

    Raises:
      TypeError: if the loss returns no floating-point scalar, or ``params`` holds integers.
      ValueError: if the leaves of ``examples`` do not share a leading axis.

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
    count = leading_axis("gradient_statistics", "examples", examples)
    batches = jax.tree.map(lambda x: jnp.expand_dims(x, 1), examples)  # N batches of one
    first = jax.tree.map(lambda x: x[0], batches)
    check_loss("gradient_statistics", loss_fn, params, first)
    grad_fn = jax.grad(loss_fn)

    def add(
        carry: tuple[Grads, jax.Array], numbered: tuple[jax.Array, Any]
    ) -> tuple[tuple[Grads, jax.Array], None]:
        mean, spread = carry
        i, batch = numbered
        off = mix((1, grad_fn(params, batch)), (-1, mean))
        # Welford: the i-th example moves the mean by off/i and adds ‖off‖² (i − 1)/i to Σ‖gᵢ − g‖²,
        # of which the root is kept, because squares of small gradients vanish.
        moved = optax.tree.cast_like(mix((1, mean), (1 / i, off)), mean)
        return (moved, jnp.hypot(spread, jnp.sqrt((i - 1) / i) * norm(off))), None

    zero = widened(optax.tree.zeros_like(params))
    none = norm(zero)
    numbers = jnp.arange(1, count + 1, dtype=none.dtype)
    (g, spread), _ = jax.lax.scan(add, (zero, none), (numbers, batches))
    deviation = spread / count**0.5
    return GradientStatistics(norm(g), deviation**2, (deviation / norm(g)) ** 2, count)
