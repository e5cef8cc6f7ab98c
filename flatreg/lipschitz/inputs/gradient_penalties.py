"""Penalties on the gradient with respect to the input: mean over examples of (‖∇ₓf‖ − target)².

``f`` maps a batch to one output an example, or several, whose Jacobian's Frobenius norm then takes
the gradient's place. The gradient of Σₙ f(x)ₙ holds every example's own gradient, in one backward
pass for the whole batch, as long as f(x)ₙ depends on xₙ alone. BatchNorm in training mode breaks
that: critics are built without it, or with its statistics fixed.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.tree import widened
from flatreg.typing import Scalar

BatchFn: TypeAlias = Callable[..., jax.Array]
"""``f(x)``: a batch, (batch, …), to outputs, (batch,) or (batch, outputs)."""


def input_gradient_penalty(
    f: BatchFn, x: jax.Array, target: Scalar = 1.0, *, one_sided: bool = False
) -> jax.Array:
    r"""Mean over the examples of (‖∇ₓf(x)‖ − target)².

    To be added to a loss, with a weight. It costs one more backward pass through f an output, and
    its own gradient a derivative of that. Where a gradient is zero, so is the penalty's derivative.

    Args:
      f: maps the batch to (batch,) or (batch, outputs), an example's output depending on that
        example alone: no BatchNorm in training mode. Of several outputs the Jacobian's Frobenius
        norm is taken.
      x: the inputs, (batch, …).
      target: the norm that costs nothing, 1 for a critic; 0 penalizes the mean squared norm.
      one_sided: whether only norms above ``target`` cost: max(0, ‖∇ₓf‖ − target)².

    Returns:
      A scalar, in at least float32.

    Raises:
      ValueError: if f's output is of another shape.
      TypeError: if x is not of floating point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> f = lambda x: x @ jnp.array([3.0, 4.0])
      >>> x = jnp.ones((8, 2))
      >>> print(lipschitz.input_gradient_penalty(f, x))
      16.0
      >>> print(lipschitz.input_gradient_penalty(f, x, 7.0, one_sided=True))
      0.0

    References:
      Gulrajani et al., `Improved Training of Wasserstein GANs <https://arxiv.org/abs/1704.00028>`_,
      NeurIPS 2017, section 4; one-sided in its section 4, 'Two-sided penalty'.

      Drucker and Le Cun, `Improving Generalization Performance Using Double Backpropagation
      <https://doi.org/10.1109/72.165600>`_, 1992, for target 0.
    """
    excess = _gradient_norms(f, x) - target
    if one_sided:
        excess = jnp.maximum(excess, 0)
    return jnp.mean(excess**2)


def interpolated_gradient_penalty(
    f: BatchFn,
    real: jax.Array,
    fake: jax.Array,
    key: jax.Array,
    target: Scalar = 1.0,
    *,
    one_sided: bool = False,
) -> jax.Array:
    r"""WGAN-GP: the penalty at x̂ = εx + (1 − ε)x̃, one uniform ε an example.

    The critic's loss is mean f(x̃) − mean f(x) + 10·penalty.

    Args:
      f: the critic, as in :func:`input_gradient_penalty`.
      real: examples x, (batch, …).
      fake: generated examples x̃, of the same shape.
      key: draws ε in [0, 1).
      target: see there.
      one_sided: see there.

    Returns:
      A scalar, without the weight.

    Raises:
      ValueError: if the shapes of ``real`` and ``fake`` differ.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> f = lambda x: jnp.sum(x**2, axis=(1, 2)) / 2  # ∇ₓf = x
      >>> real, fake = 3 * jnp.ones((8, 2, 2)), jnp.zeros((8, 2, 2))
      >>> penalty = lipschitz.interpolated_gradient_penalty(f, real, fake, jax.random.key(0))
      >>> bool(0 < penalty < 25)  # ‖x̂‖ = 6ε
      True

    References:
      Gulrajani et al., `Improved Training of Wasserstein GANs <https://arxiv.org/abs/1704.00028>`_,
      NeurIPS 2017, Algorithm 1.
    """
    if jnp.shape(real) != jnp.shape(fake):
        raise ValueError(
            f"real and fake must have the same shape, got {jnp.shape(real)} and {jnp.shape(fake)}: "
            "generate as many examples, interpolated_gradient_penalty(f, x, generator(z), key)."
        )
    check_inputs(real)
    one_each = (len(real),) + (1,) * (jnp.ndim(real) - 1)
    share = jax.random.uniform(key, one_each, jnp.promote_types(real.dtype, jnp.float32))
    mixed = (share * real + (1 - share) * fake).astype(real.dtype)  # x̂ = εx + (1 − ε)x̃
    return input_gradient_penalty(f, mixed, target, one_sided=one_sided)


def check_inputs(x: jax.Array) -> None:
    """``x`` is a batch that one can differentiate with respect to."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(
            f"a gradient with respect to x needs floating-point inputs, got {jnp.result_type(x)}: "
            "pass x.astype(jnp.float32) / 255, or the embeddings in place of the tokens."
        )
    if jnp.ndim(x) == 0 or not jnp.shape(x)[0]:
        raise ValueError(f"x must be a batch, (batch, …), got shape {jnp.shape(x)}: pass x[None].")


def check_outputs(outputs: tuple[int, ...], examples: int) -> None:
    """``outputs`` is (batch,) or (batch, outputs)."""
    if len(outputs) not in (1, 2) or outputs[0] != examples:
        raise ValueError(
            f"f must map a batch of {examples} examples to ({examples},) or ({examples}, outputs), "
            f"got {outputs}: reduce other axes of an example, never the batch's, by lambda x: "
            "f(x).reshape(len(x), -1), and map one example alone by jax.vmap(f)."
        )


def _gradient_norms(f: BatchFn, x: jax.Array) -> jax.Array:
    """‖∂f(x)ₙ/∂xₙ‖_F of every example, (batch,)."""
    check_inputs(x)
    y, pull = jax.vjp(f, x)
    check_outputs(y.shape, len(x))
    unit_vectors = jnp.eye(y.size // len(x), dtype=y.dtype)
    # One cotangent an output, the same for every example: Σₙ f(x)ₙ separates into its terms.
    cotangents = jax.vmap(lambda e: jnp.broadcast_to(e.reshape(y.shape[1:]), y.shape))(unit_vectors)
    (rows,) = jax.vmap(pull)(cotangents)
    return root(jnp.sum(widened(rows) ** 2, axis=(0, *range(2, rows.ndim))))


def root(squares: jax.Array) -> jax.Array:
    """√ with a slope of zero at zero, where it has none."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
