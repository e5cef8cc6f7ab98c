"""Penalties on the norms of kernels, as Optax transformations that add the penalty's gradient.

    spectral     L + (λ/2) Σ σ(A_W)²         adds λσ∇σ,  ∇σ = VJP of ⟨v, A_W(u)⟩: uvᵀ if dense
    orthogonal   L + (λ/2) Σ ‖WᵀW − 1‖_F²    adds 2λW(WᵀW − 1)

In a chain, put a penalty between the method and the optimizer. If the penalty came before ``sam``,
it would change only the direction of the ascent and would be missing from the step::

    optax.chain(flatreg.sam(0.05), lipschitz.spectral_norm_penalty(0.01, key), optax.sgd(0.1))

The penalty (λ/2)‖W‖_F² on the Frobenius norm is weight decay: ``optax.add_decayed_weights(λ)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scalars
from flatreg._core.tree import map_named, matmul, with_standard_promotion
from flatreg.lipschitz.control.kernels import (
    LayerMap,
    Operators,
    Where,
    choose_kernels,
    linear_map_of,
    matrices,
    per_layer,
)
from flatreg.lipschitz.control.power_state import PowerState, advance, increment, start, value_at
from flatreg.lipschitz.operators.linear import float_kernel
from flatreg.typing import Grads, Params, ScalarOrSchedule


def spectral_norm_penalty(
    penalty: ScalarOrSchedule,
    key: jax.Array,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Spectral norm regularization: descends L + (λ/2) Σ σ(A)² over the kernels.

    The transformation adds λσ∇σ to the gradient. σ comes from one power iteration per step, which
    continues from the previous step. The first update does 50 more iterations.

    As in the paper, σ² is multiplied by λ/2. For comparison, weight decay with the same λ penalizes
    (λ/2)Σ‖W‖_F².

    Args:
      penalty: λ ≥ 0, a number or a schedule.
      key: the random key for the start of the power iteration.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)`` for the
        tree that is trained. In Linen, ``f = lambda params, x: model.apply({"params": params},
        x)``. The kernels in ``operators`` are penalized, and each layer of a stack has its own
        norm. If None, the leaves called ``kernel`` are penalized as dense kernels, and a kernel
        that does not have two axes raises an error.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves. To penalize several groups of
        layers differently, chain several penalties.

    Returns:
      A gradient transformation whose state is a :class:`PowerState`. In a chain, put it between the
      method and the optimizer:
      ``optax.chain(flatreg.sam(0.05), spectral_norm_penalty(0.01, key), optax.sgd(0.1))``.

    Raises:
      ValueError: if λ is a negative number; in ``init``, if no kernel is found, or if it is not
        clear what a kernel does.

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
        chosen = choose_kernels("spectral_norm_penalty", params, operators, where)
        return start(key, chosen, operators)

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        chosen = choose_kernels("spectral_norm_penalty", params, operators, where)
        weight = value_at(penalty, state.count)
        norms, state = advance(chosen, operators, state)

        def penalized(path: str, g: jax.Array, kernel: jax.Array) -> jax.Array:
            if path not in norms:
                return g
            sigma, pullback = jax.vjp(norms[path], float_kernel(kernel))
            penalized: jax.Array = g + weight * pullback(sigma)[0]  # g + λσ∇σ
            return penalized.astype(g.dtype)

        return map_named(penalized, updates, params), state

    return optax.GradientTransformation(init, with_standard_promotion(update))


def orthogonality_penalty(
    penalty: ScalarOrSchedule,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Parseval regularization: descends L + (λ/2) Σ ‖WᵀW − 1‖_F² over the kernels.

    W is the kernel as a matrix (inputs, outputs), transposed if it has fewer inputs than outputs,
    so that WᵀW = 1 is possible. If WᵀW = 1, all singular values are 1. For a convolution, W is the
    reshaped kernel (window·in, out), or one such matrix per group. An orthogonal W is a tight frame
    for single patches. It does not make the convolution orthogonal, because several patches read
    each input. A stack of layers has one W per layer.

    Args:
      penalty: λ ≥ 0, a number or a schedule.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)``. The
        kernels in ``operators`` are penalized. If None, the leaves called ``kernel`` are penalized
        as dense kernels, and a kernel that does not have two axes raises an error.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves.

    Returns:
      A gradient transformation. In a chain, put it between the method and the optimizer:
      ``optax.chain(flatreg.sam(0.05), orthogonality_penalty(0.01), optax.sgd(0.1))``.

    Raises:
      ValueError: if λ is a negative number; in ``init``, if no kernel is found, or if it is not
        clear what a kernel does.

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

    name = "orthogonality_penalty"

    def distance(path: str, kernel: jax.Array) -> jax.Array:
        def of_layer(kernel: jax.Array, linear_map: LayerMap) -> jax.Array:
            return _distance_from_orthogonal(matrices(name, path, kernel, linear_map))

        return jnp.sum(per_layer(of_layer, kernel, linear_map_of(path, operators)))

    def init(params: Params) -> optax.ScaleByScheduleState:
        for path, kernel in choose_kernels(name, params, operators, where).items():
            jax.eval_shape(lambda kernel, path=path: distance(path, kernel), kernel)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        chosen = choose_kernels(name, params, operators, where)
        weight = value_at(penalty, state.count)

        def penalized(path: str, g: jax.Array, kernel: jax.Array) -> jax.Array:
            if path not in chosen:
                return g
            slope = jax.grad(lambda kernel: distance(path, kernel))(float_kernel(kernel))
            penalized: jax.Array = g + weight * slope
            return penalized.astype(g.dtype)

        state = optax.ScaleByScheduleState(increment(state.count))
        return map_named(penalized, updates, params), state

    return optax.GradientTransformation(init, with_standard_promotion(update))


def _distance_from_orthogonal(matrix: jax.Array) -> jax.Array:
    """Returns ½‖WᵀW − 1‖², summed over matrices of shape (…, inputs, outputs)."""
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    gram = matmul(matrix.mT, matrix)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jnp.sum((gram - identity) ** 2) / 2
