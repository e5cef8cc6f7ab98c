"""Power iteration with its state kept, for training: one product with A and one with Aᵀ a step."""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core import tree as _tree
from flatreg.lipschitz.norms.upper_bounds import default_map
from flatreg.lipschitz.operators.linear_maps import LinearMap, widened


def power_iteration(
    kernel: Any, linear_map: LinearMap | None, u: jax.Array, steps: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""v = A(u)/‖A(u)‖, then u = Aᵀ(v)/σ with σ = ‖Aᵀ(v)‖ ≤ σ(A), ``steps`` times.

    One step a training step suffices if ``u`` is kept, because the kernel moves slowly. Afterwards
    σ = ⟨v, A(u)⟩, so that with u and v held constant ∇σ is the gradient of ⟨v, A_W(u)⟩ in W: uvᵀ
    for a dense kernel (in, out).

    Args:
      kernel: the kernel; computed in at least float32.
      linear_map: what it does; None is ``Dense()``, for a kernel of two axes.
      u: the state, an input: ``jax.random.normal(key, linear_map.input_shape_of(kernel))`` at
        first, then what this returns.
      steps: how many, at least one.

    Returns:
      σ, a lower bound; u, of norm one in the space of inputs; v, of norm one in that of outputs.
      If A(u) = 0, then σ and v are zero and ``u`` is returned as it came.

    Raises:
      ValueError: if the kernel does not fit the map, u is not shaped like its input, or ``steps``
        is not positive.
      TypeError: if the kernel is not of floating point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> sigma, u, v = lipschitz.power_iteration(kernel, lipschitz.Dense(), jnp.ones(2))
      >>> print(sigma, u, v)
      2.0 [1. 0.] [0. 1.]

    References:
      Yoshida and Miyato, `Spectral Norm Regularization <https://arxiv.org/abs/1705.10941>`_, 2017;
      Gouk and others, 2021, as in :func:`induced_norm`, for convolutions by their true operator.
    """
    kernel = widened(kernel)
    linear_map = default_map(kernel) if linear_map is None else linear_map
    if linear_map is None:
        raise ValueError(
            "power_iteration needs the linear map of a convolution: pass flatreg.lipschitz."
            "Convolution((*spatial, channels), strides=…, padding=…)."
        )
    shape = linear_map.input_shape_of(kernel)
    if jnp.shape(u) != shape:
        raise ValueError(
            f"u has shape {jnp.shape(u)}, but the inputs have {shape}: start with "
            "u = jax.random.normal(key, linear_map.input_shape_of(kernel))."
        )
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: write steps=1.")
    u = jnp.asarray(u, kernel.dtype)
    known: LinearMap = linear_map

    def product(x: jax.Array) -> jax.Array:
        return known.apply(kernel, x)

    y = jax.eval_shape(product, u)
    adjoint = jax.linear_transpose(product, u)

    def step(_: Any, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        _, u, _ = carry
        v = _tree.unit(product(u))
        back = adjoint(v)[0]
        sigma = _tree.norm(back).astype(kernel.dtype)
        return sigma, jnp.where(sigma == 0, u, _tree.unit(back)), v

    carry = jnp.zeros((), kernel.dtype), u, jnp.zeros(y.shape, y.dtype)
    result: tuple[jax.Array, jax.Array, jax.Array] = jax.lax.fori_loop(0, steps, step, carry)
    return result
