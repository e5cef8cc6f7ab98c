"""Penalties on the norms of kernels, as Optax transformations which add their gradients.

    spectral     L + (λ/2) Σ σ(A_W)²         adds λσ∇σ,  ∇σ = VJP of ⟨v, A_W(u)⟩: uvᵀ if dense
    orthogonal   L + (λ/2) Σ ‖WᵀW − 1‖_F²    adds 2λW(WᵀW − 1)

They stand between the method and the optimizer: in front of ``sam`` a penalty would only turn its
ascent, and be gone from the step::

    optax.chain(flatreg.sam(0.05), lipschitz.spectral_norm_penalty(0.01, key), optax.sgd(0.1))

The Frobenius norm's is weight decay: ``optax.add_decayed_weights(penalty)`` for L + (λ/2)‖W‖_F².
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scalars
from flatreg._core.tree import map_named, matmul
from flatreg.lipschitz.control.kernels import (
    Operators,
    PowerState,
    Where,
    advance,
    increment,
    kernels,
    start,
)
from flatreg.lipschitz.operators.linear_maps import Dense, widened
from flatreg.typing import Grads, Params, ScalarOrSchedule


def spectral_norm_penalty(
    penalty: ScalarOrSchedule,
    key: jax.Array,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Spectral norm regularization: descends L + (λ/2) Σ σ(A)² over the kernels.

    Adds λσ∇σ with σ by one power iteration a step, from where the last one ended; the first update
    makes 50 more. That λ/2 multiplies σ², as in the paper, so that weight decay of the same λ
    penalizes (λ/2)Σ‖W‖_F².

    Args:
      penalty: λ ≥ 0, a number or a schedule.
      key: draws the start of the iteration, a random key.
      operators: what each kernel does: ``linear_maps(f, params, x)`` of the tree that is trained
        (in Linen ``f = lambda params, x: model.apply({"params": params}, x)``), and then these
        kernels are penalized. If None, leaves called ``kernel``: those of two axes as dense, others
        as convolutions of stride 1 on a grid of 16 or more an axis that closes on itself. Their
        norm is their symbol's largest on that grid, whatever the stride and padding really are.
      where: a predicate on a leaf's path, to leave some out, or without ``operators`` to name the
        kernels. For other penalties on other layers chain several.

    Returns:
      A transformation with a :class:`PowerState`, to stand between the method and the optimizer:
      ``optax.chain(flatreg.sam(0.05), spectral_norm_penalty(0.01, key), optax.sgd(0.1))``.

    Raises:
      ValueError: if λ is a negative number; in ``init``, if no kernel is found.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0])), "bias": jnp.ones(2)}
      >>> penalty = lipschitz.spectral_norm_penalty(0.1, jax.random.key(0))
      >>> zeros = optax.tree.zeros_like(params)
      >>> updates, state = penalty.update(zeros, penalty.init(params), params)
      >>> print(f"{updates['kernel'][1, 1]:.2f} {updates['bias'][0]} {state.norms['kernel']:.2f}")
      0.30 0.0 3.00

    References:
      Yoshida and Miyato, `Spectral Norm Regularization for Improving the Generalizability of Deep
      Learning <https://arxiv.org/abs/1705.10941>`_, 2017.
    """
    check_scalars(penalty=penalty)
    check_nonnegative(penalty=penalty)

    def init(params: Params) -> PowerState:
        chosen = kernels("spectral_norm_penalty", params, operators, where)
        return start(key, chosen, operators)

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        chosen = kernels("spectral_norm_penalty", _needed(params), operators, where)
        size = scheduled(penalty, state.count)
        norms, state = advance(chosen, operators, state)

        def penalized(path: str, g: jax.Array, kernel: jax.Array) -> jax.Array:
            if path not in norms:
                return g
            sigma, slope = jax.value_and_grad(norms[path])(widened(kernel))
            penalized: jax.Array = g + size * sigma * slope  # g + λσ∇σ
            return penalized.astype(g.dtype)

        return map_named(penalized, updates, params), state

    return optax.GradientTransformation(init, update)


def orthogonality_penalty(
    penalty: ScalarOrSchedule, *, where: Where | None = None
) -> optax.GradientTransformation:
    r"""Parseval regularization: descends L + (λ/2) Σ ‖WᵀW − 1‖_F² over the kernels.

    W is the kernel as a matrix (inputs, outputs), or transposed where that is wider than tall, so
    that WᵀW = 1 can be reached: then all singular values are 1. A convolution's matrix is its
    reshaped kernel (window·in, out): orthogonal, it is a tight frame of patches, of which several
    read each input.

    Args:
      penalty: λ ≥ 0, a number or a schedule.
      where: a predicate on a leaf's path; by default it is called ``kernel``.

    Returns:
      A transformation, to stand between the method and the optimizer:
      ``optax.chain(flatreg.sam(0.05), orthogonality_penalty(0.01), optax.sgd(0.1))``.

    Raises:
      ValueError: if λ is a negative number; in ``init``, if no kernel is found.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
      >>> penalty = lipschitz.orthogonality_penalty(0.1)
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, _ = penalty.update(zeros, penalty.init(params), params)
      >>> print([f"{x:.2f}" for x in jnp.diagonal(updates["kernel"])])  # 2λσ(σ² − 1)
      ['0.00', '1.20']

    References:
      Cissé, Bojanowski, Grave, Dauphin and Usunier, `Parseval Networks
      <https://arxiv.org/abs/1704.08847>`_, ICML 2017.
    """
    check_scalars(penalty=penalty)
    check_nonnegative(penalty=penalty)

    def init(params: Params) -> optax.ScaleByScheduleState:
        kernels("orthogonality_penalty", params, None, where)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        chosen = kernels("orthogonality_penalty", _needed(params), None, where)
        size = scheduled(penalty, state.count)

        def penalized(path: str, g: jax.Array, kernel: jax.Array) -> jax.Array:
            if path not in chosen:
                return g
            slope = jax.grad(_distance_from_orthogonal)(widened(kernel))
            penalized: jax.Array = g + size * slope
            return penalized.astype(g.dtype)

        state = optax.ScaleByScheduleState(increment(state.count))
        return map_named(penalized, updates, params), state

    return optax.GradientTransformation(init, update)


def _distance_from_orthogonal(kernel: jax.Array) -> jax.Array:
    matrix = Dense().matrix(kernel)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    gram = matmul(matrix.T, matrix)
    return jnp.sum((gram - jnp.eye(len(gram), dtype=gram.dtype)) ** 2) / 2  # ½‖WᵀW − 1‖²


def scheduled(value: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """The scalar at this step."""
    size: Any = value(count) if callable(value) else value
    return jnp.asarray(size)


def _needed(params: Params | None) -> Params:
    if params is None:
        raise ValueError("a penalty on kernels needs them: write tx.update(grads, state, params).")
    return params
