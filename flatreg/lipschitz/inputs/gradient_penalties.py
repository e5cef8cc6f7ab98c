"""Penalties on the gradient with respect to the input: mean over examples of (‖∇ₓf‖ − target)².

``f`` maps a batch to one output per example. If there are several outputs, the Frobenius norm of
the Jacobian takes the place of the norm of the gradient.

One backward pass for the whole batch is enough, because the gradient of Σₙ f(x)ₙ contains the
gradients of all examples. This requires that f(x)ₙ depends on xₙ alone, which BatchNorm in training
mode violates. Critics are therefore built without BatchNorm, or with BatchNorm that has fixed
statistics.
"""

import jax
import jax.numpy as jnp

from flatreg._core.tree import wide_dtype, widened
from flatreg.lipschitz.batch_functions import BatchFn, check_inputs, check_outputs
from flatreg.lipschitz.inputs.jacobians import safe_sqrt
from flatreg.typing import Scalar


def input_gradient_penalty(
    f: BatchFn, x: jax.Array, target: Scalar = 1.0, *, one_sided: bool = False
) -> jax.Array:
    r"""Returns the mean of (‖∇ₓf(x)‖ − target)² over the examples.

    Add it to a loss with a weight of your choice. It costs one more backward pass through f per
    output, and its own gradient differentiates that pass. Where a gradient ∇ₓf is zero, the
    derivative of its term is defined to be zero.

    Args:
      f: maps the batch to (batch,) or (batch, outputs). The output of an example may depend on that
        example only, which rules out BatchNorm in training mode. If there are several outputs, the
        Frobenius norm of the Jacobian is used.
      x: the inputs, with shape (batch, …).
      target: the gradient norm that is not penalized. Use 1 for a critic. With 0, the mean squared
        norm is penalized.
      one_sided: whether only norms above ``target`` are penalized, by max(0, ‖∇ₓf‖ − target)².

    Returns:
      A scalar, in at least float32.

    Raises:
      ValueError: if the output of f is neither (batch,) nor (batch, outputs).
      TypeError: if x is not floating-point.

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
      NeurIPS 2017, section 4, whose paragraph 'Two-sided penalty' discusses the one-sided variant.

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
    r"""Returns the gradient penalty of WGAN-GP, between real and generated examples.

    This is :func:`input_gradient_penalty` at x̂ = εx + (1 − ε)x̃, with one uniform ε per example.
    The loss of the critic is mean f(x̃) − mean f(x) + 10·penalty.

    Args:
      f: the critic, which maps a batch to (batch,) or (batch, outputs). The output of an example
        may depend on that example only, which rules out BatchNorm in training mode.
      real: real examples x, with shape (batch, …).
      fake: generated examples x̃, with the same shape.
      key: the random key for ε in [0, 1).
      target: the gradient norm that is not penalized.
      one_sided: whether only norms above ``target`` are penalized.

    Returns:
      A scalar, without the weight 10.

    Raises:
      ValueError: if the shapes of ``real`` and ``fake`` differ, or if the output of f is neither
        (batch,) nor (batch, outputs).
      TypeError: if ``real`` is not floating-point.

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
            "generate one example per real example and call "
            "interpolated_gradient_penalty(f, x, generator(z), key)."
        )
    check_inputs(real)
    one_per_example = (len(real),) + (1,) * (jnp.ndim(real) - 1)
    epsilon = jax.random.uniform(key, one_per_example, wide_dtype(real.dtype))
    mixed = (epsilon * real + (1 - epsilon) * fake).astype(real.dtype)  # x̂ = εx + (1 − ε)x̃
    return input_gradient_penalty(f, mixed, target, one_sided=one_sided)


def _gradient_norms(f: BatchFn, x: jax.Array) -> jax.Array:
    """Returns ‖∂f(x)ₙ/∂xₙ‖_F for every example n, with shape (batch,)."""
    check_inputs(x)
    y, pull = jax.vjp(f, x)
    check_outputs(y.shape, len(x))
    unit_vectors = jnp.eye(y.size // len(x), dtype=y.dtype)
    # One cotangent per output, the same for all examples. It selects Σₙ f(x)ₙ for that output.
    cotangents = jax.vmap(lambda e: jnp.broadcast_to(e.reshape(y.shape[1:]), y.shape))(unit_vectors)
    (rows,) = jax.vmap(pull)(cotangents)
    return safe_sqrt(jnp.sum(widened(rows) ** 2, axis=(0, *range(2, rows.ndim))))
