"""How strongly a function reacts to its input: norms of the Jacobian J over a data set.

The rows of J, with shape (outputs, inputs), come from one backward pass per output. If there is one
output, ‖J‖_F is the norm of the gradient. ‖J‖₂ is computed from the Gram matrix JJᵀ, which has only
one row per output. The function sees one example at a time, so that the Jacobians of different
examples cannot mix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from flatreg.lipschitz.batch_functions import BatchFn, check_inputs
from flatreg.lipschitz.inputs.jacobians import jacobian, top_singular_value

Result = TypeVar("Result")


class InputSensitivity(NamedTuple):
    """Norms of the Jacobian J = ∂f/∂x over a data set.

    The Lipschitz constant of f, in the 2-norm, is at least ``max_spectral``.

    Attributes:
      mean_norm: the mean of ‖J‖_F, which is ‖∇ₓf‖ if f has one output.
      max_norm: the largest ‖J‖_F.
      argmax_norm: the index of the example with the largest ‖J‖_F.
      mean_spectral: the mean of ‖J‖₂.
      max_spectral: the largest ‖J‖₂.
      argmax_spectral: the index of the example with the largest ‖J‖₂.
    """

    mean_norm: jax.Array
    max_norm: jax.Array
    argmax_norm: jax.Array
    mean_spectral: jax.Array
    max_spectral: jax.Array
    argmax_spectral: jax.Array


def input_sensitivity(
    f: BatchFn, x: jax.Array, *args: Any, batch_size: int = 100
) -> InputSensitivity:
    r"""Returns the mean and the maximum of ‖J‖_F and ‖J‖₂ over the examples, with J = ∂f/∂x.

    Args:
      f: maps a batch to (batch,) or (batch, outputs). It is called with one example at a time under
        ``vmap``, so BatchNorm must be in evaluation mode.
      x: the inputs, with shape (examples, …).
      *args: further arguments of f, arrays whose first axis indexes the examples. For example,
        ``f(x, labels)`` may return one loss per example.
      batch_size: the number of examples per batch. It affects only the memory use, batch_size ×
        outputs × inputs numbers, and not the values.

    Returns:
      An :class:`InputSensitivity`.

    Raises:
      ValueError: if the output of f is neither (batch,) nor (batch, outputs), or if ``batch_size``
        is less than 1.
      TypeError: if x is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> f = lambda x: x**2 / 2  # J = diag(x)
      >>> found = lipschitz.input_sensitivity(f, jnp.array([[3.0, 4.0], [5.0, 0.0], [6.0, 8.0]]))
      >>> print(found.max_norm, found.argmax_norm, round(float(found.max_spectral), 4))
      10.0 2 8.0

    References:
      Novak et al., `Sensitivity and Generalization in Neural Networks: an Empirical Study
      <https://arxiv.org/abs/1802.08760>`_, ICLR 2018.
    """

    def norms(*example: Any) -> tuple[jax.Array, jax.Array]:
        matrix = jacobian(f, *example)
        return jnp.linalg.norm(matrix), top_singular_value(matrix)

    frobenius, spectral = _over_examples(norms, (x, *args), batch_size)
    return InputSensitivity(
        jnp.mean(frobenius),
        jnp.max(frobenius),
        jnp.argmax(frobenius),
        jnp.mean(spectral),
        jnp.max(spectral),
        jnp.argmax(spectral),
    )


def geometric_complexity(f: BatchFn, x: jax.Array, *args: Any, batch_size: int = 100) -> jax.Array:
    r"""Returns the geometric complexity: the mean of ‖∂f/∂x‖²_F over the examples.

    The paper denotes it by ⟨f, D⟩_G. It is differentiable and can be used as a regularizer. For a
    classifier, the paper uses the complexity of the logits.

    Args:
      f: maps a batch to (batch,) or (batch, outputs). It is called with one example at a time under
        ``vmap``, so BatchNorm must be in evaluation mode.
      x: the inputs, with shape (examples, …).
      *args: further arguments of f, arrays whose first axis indexes the examples.
      batch_size: the number of examples per batch. It affects only the memory use, not the value.

    Returns:
      A scalar, in at least float32.

    Raises:
      ValueError: if ``batch_size`` is less than 1, or if the output of f is neither (batch,) nor
        (batch, outputs).
      TypeError: if x is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> f = lambda x: x @ jnp.array([[1.0, 0.0], [2.0, 3.0]])
      >>> print(lipschitz.geometric_complexity(f, jnp.ones((8, 2))))  # ‖W‖²_F
      14.0

    References:
      Dherin et al., `Why neural networks find simple solutions: the many regularizers of geometric
      complexity <https://arxiv.org/abs/2209.13083>`_, NeurIPS 2022.
    """

    def square(*example: Any) -> jax.Array:
        return jnp.sum(jacobian(f, *example) ** 2)

    return jnp.mean(_over_examples(square, (x, *args), batch_size))


def _over_examples(
    function: Callable[..., Result], examples: tuple[Any, ...], batch_size: int
) -> Result:
    """Returns the values of ``function`` at each example, stacked."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}: write batch_size=100.")
    check_inputs(examples[0])
    results: Result = jax.lax.map(
        lambda example: function(*example), examples, batch_size=batch_size
    )
    return results
