"""Power iteration for training, with vectors that are kept from one step to the next.

Each iteration costs one product with A and one with Aᵀ.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core import tree as _tree
from flatreg.lipschitz.norms.upper_bounds import default_map
from flatreg.lipschitz.operators.linear import LinearMap, float_kernel


class _Triple(NamedTuple):
    """An approximate singular value σ with its input u and its output v."""

    sigma: jax.Array
    u: jax.Array
    v: jax.Array


def power_iteration(
    kernel: Any, linear_map: LinearMap | None, u: jax.Array, steps: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Approximates the largest singular value of a linear map A by power iteration.

    Repeats ``steps`` times: v = A(u)/‖A(u)‖, then u = Aᵀ(v)/σ with σ = ‖Aᵀ(v)‖ ≤ σ(A).

    If ``u`` is kept between training steps, one iteration per step is enough, because the kernel
    changes slowly. The result satisfies σ = ⟨v, A(u)⟩. With u and v held constant, ∇σ is therefore
    the gradient of ⟨v, A_W(u)⟩ with respect to W, which is uvᵀ for a dense kernel (in, out).

    Args:
      kernel: the kernel. The computation is in at least float32.
      linear_map: the linear map of the layer. If None, ``Dense()``, for a kernel with two axes.
      u: the vector to start from, shaped like an input. Start with ``jax.random.normal(key,
        linear_map.input_shape_of(kernel))``, and in later calls pass the ``u`` that this function
        returned.
      steps: the number of iterations, at least 1.

    Returns:
      A tuple of σ, a lower bound on σ(A); u, an input of norm 1; and v, an output of norm 1. If
      A(u) = 0, then σ and v are zero and ``u`` is returned unchanged.

    Raises:
      ValueError: if the kernel does not fit the map, if ``u`` is not shaped like an input, or if
        ``steps`` is not positive.
      TypeError: if the kernel is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> sigma, u, v = lipschitz.power_iteration(kernel, lipschitz.Dense(), jnp.ones(2))
      >>> print(sigma, u, v)
      2.0 [1. 0.] [0. 1.]

    References:
      Yoshida and Miyato, `Spectral Norm Regularization <https://arxiv.org/abs/1705.10941>`_, 2017.

      Gouk, Frank, Pfahringer and Cree, `Regularisation of Neural Networks by Enforcing Lipschitz
      Continuity <https://arxiv.org/abs/1804.04368>`_, 2021, who apply it to convolutions as linear
      maps rather than to reshaped kernels.
    """
    kernel = float_kernel(kernel)
    linear_map = default_map(kernel) if linear_map is None else linear_map
    shape = linear_map.input_shape_of(kernel)
    if jnp.shape(u) != shape:
        raise ValueError(
            f"u must have the shape of an input, {shape}, got {jnp.shape(u)}: start with "
            "u = jax.random.normal(key, linear_map.input_shape_of(kernel))."
        )
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: write steps=1.")
    u = jnp.asarray(u, kernel.dtype)
    apply = linear_map.apply

    def product(x: jax.Array) -> jax.Array:
        return apply(kernel, x)

    y = jax.eval_shape(product, u)
    adjoint = jax.linear_transpose(product, u)

    def step(_: Any, triple: _Triple) -> _Triple:
        v = _tree.unit(product(triple.u))
        back = adjoint(v)[0]
        sigma = _tree.norm(back).astype(kernel.dtype)
        return _Triple(sigma, jnp.where(sigma == 0, triple.u, _tree.unit(back)), v)

    start = _Triple(jnp.zeros((), kernel.dtype), u, jnp.zeros(y.shape, y.dtype))
    sigma, u, v = jax.lax.fori_loop(0, steps, step, start)
    return sigma, u, v
