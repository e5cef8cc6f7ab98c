"""How strongly a function reacts to its input over a data set, from each example's own Jacobian J.

One backward pass an output gives J's rows, (outputs, inputs), exactly; ‖J‖_F is the gradient's norm
where there is one output, and ‖J‖₂ comes from the small Gram matrix JJᵀ. f sees one example at a
time, so no example's Jacobian mixes with another's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.tree import matmul, norm, unit, widened
from flatreg.lipschitz.inputs.gradient_penalties import BatchFn, check_inputs, check_outputs


class InputSensitivity(NamedTuple):
    """Norms of the Jacobian over a data set; f's Lipschitz constant is at least ``max_spectral``.

    Attributes:
      mean_norm: mean of ‖J‖_F, which for one output is ‖∇ₓf‖.
      max_norm: the largest ‖J‖_F.
      argmax_norm: the index of the example where it is.
      mean_spectral: mean of ‖J‖₂.
      max_spectral: the largest ‖J‖₂.
      argmax_spectral: the index of the example where it is.
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
    r"""Mean and maximum of ‖J‖_F and ‖J‖₂ over the examples, J = ∂f/∂x of each, and where.

    Args:
      f: maps a batch to (batch,) or (batch, outputs); it is called with one example at a time
        under ``vmap``, so BatchNorm needs its evaluation mode.
      x: the inputs, (examples, …).
      *args: what else f takes, arrays with the examples as leading axis, such as labels:
        ``f(x, labels)`` a loss an example, say.
      batch_size: examples at a time; decides about memory, batch_size × outputs × inputs numbers,
        not about values.

    Returns:
      :class:`InputSensitivity`.

    Raises:
      ValueError: if f's output is of another shape, or ``batch_size`` below 1.
      TypeError: if x is not of floating point.

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
    frobenius, spectral = jacobian_norms(f, x, *args, batch_size=batch_size)
    return InputSensitivity(
        jnp.mean(frobenius),
        jnp.max(frobenius),
        jnp.argmax(frobenius),
        jnp.mean(spectral),
        jnp.max(spectral),
        jnp.argmax(spectral),
    )


def geometric_complexity(f: BatchFn, x: jax.Array, *args: Any, batch_size: int = 100) -> jax.Array:
    r"""⟨f, D⟩_G = mean over the examples of ‖∂f/∂x‖²_F.

    It can be differentiated, to be a regularizer. For a classifier the paper takes the logits'.

    Args:
      f: as in :func:`input_sensitivity`.
      x: see there.
      *args: see there.
      batch_size: see there.

    Returns:
      A scalar, in at least float32.

    Raises:
      ValueError: if f's output is of another shape, or ``batch_size`` below 1.

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


def jacobian_norms(
    f: BatchFn, x: jax.Array, *args: Any, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """‖J‖_F and ‖J‖₂ of every example, (examples,) each."""

    def norms(*example: Any) -> tuple[jax.Array, jax.Array]:
        matrix = jacobian(f, *example)
        return jnp.linalg.norm(matrix), top_singular_value(matrix)

    frobenius, spectral = _over_examples(norms, (x, *args), batch_size)
    return frobenius, spectral


def _over_examples(function: Any, examples: tuple[Any, ...], batch_size: int) -> Any:
    """``function`` of each example, stacked."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    check_inputs(examples[0])
    return jax.lax.map(lambda example: function(*example), examples, batch_size=batch_size)


def jacobian(f: BatchFn, x: jax.Array, *args: Any) -> jax.Array:
    """J of one example, (outputs, inputs), in at least float32."""
    batch_of_one = jax.tree.map(lambda a: a[None], args)

    def outputs(x: jax.Array) -> jax.Array:
        y = f(x[None], *batch_of_one)
        check_outputs(y.shape, 1)
        return y.reshape(-1)

    y, pull = jax.vjp(outputs, x)
    (rows,) = jax.vmap(pull)(jnp.eye(y.size, dtype=y.dtype))
    matrix: jax.Array = widened(rows.reshape(y.size, x.size))
    return matrix


def top_singular_value(matrix: jax.Array) -> jax.Array:
    """σ of a matrix with few rows, as ‖uJ‖, which is not above σ even where u is not exact."""
    return norm(matmul(top_output(matrix), matrix))


def top_output(matrix: jax.Array) -> jax.Array:
    """The unit vector u that makes ‖uJ‖ largest, a constant for differentiation."""
    matrix = jax.lax.stop_gradient(matrix)
    _, outputs = jnp.linalg.eigh(matmul(matrix, matrix.T))
    top: jax.Array = unit(outputs[:, -1])  # exactly, as its norm multiplies σ
    return top
