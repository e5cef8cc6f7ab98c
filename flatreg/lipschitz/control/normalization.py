"""Spectral normalization, W · bound/σ(A_W), as a reparametrization inside a loss."""

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg._core.tree import map_named
from flatreg.lipschitz.control.kernels import (
    Operators,
    Where,
    choose_kernels,
    linear_map_of,
    shaped,
)
from flatreg.lipschitz.control.power_state import PowerState, advance, start
from flatreg.lipschitz.operators.linear import float_kernel
from flatreg.typing import Params, Scalar


def spectral_normalization_state(
    params: Params,
    key: jax.Array,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> PowerState:
    """Returns the initial state for :func:`spectral_normalize`.

    Only the shapes and dtypes of the parameters are read, not their values.

    Args:
      params: a tree that contains the kernels.
      key: the random key for the start of the power iteration.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)``. If
        None, the leaves called ``kernel`` are normalized as dense kernels, and a kernel that does
        not have two axes raises an error.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves.

    Returns:
      A :class:`PowerState`.

    Raises:
      ValueError: if no kernel is found, or if it is not clear what a kernel does.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
      >>> lipschitz.spectral_normalization_state(params, jax.random.key(0)).inputs["kernel"].shape
      (4,)
    """
    chosen = choose_kernels("spectral_normalize", params, operators, where)
    return start(key, chosen, operators)


def spectral_normalize(
    params: Params,
    state: PowerState,
    *,
    bound: Scalar = 1.0,
    operators: Operators | None = None,
    where: Where | None = None,
) -> tuple[Params, PowerState]:
    r"""Spectral normalization: replaces every kernel by W · bound/σ(A).

    Call it inside a loss: ``loss(spectral_normalize(params, state)[0])``. Gradients flow through W
    and through σ = ⟨v, A_W(u)⟩, with u and v held constant. They are therefore orthogonal to W.

    The new kernel has norm ``bound`` apart from two errors, so ``bound`` is not guaranteed. First,
    each call does one power iteration, and the first call does 50 more before it. The iteration
    approaches σ from below, so a norm may exceed the bound, above all while the kernel changes
    quickly. Second, the new kernel is rounded to the dtype of W, which changes its norm by up to
    0.4% of the Frobenius norm in bfloat16. :func:`project_spectral_norm` with
    ``norm="upper_bound"`` guarantees a bound.

    For evaluation, call it in the same way and discard the new state.

    Args:
      params: a tree that contains the kernels.
      state: in the first call, the result of :func:`spectral_normalization_state`. In later calls,
        the state that this function returned, for example as an auxiliary output of the loss.
      bound: the norm that the normalized kernels have approximately, > 0.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)`` and as
        passed to :func:`spectral_normalization_state`. Each layer of a stack is normalized by its
        own norm. If None, the leaves called ``kernel`` are normalized as dense kernels, and a
        kernel that does not have two axes raises an error.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves.

    Returns:
      The tree with normalized kernels and unchanged dtypes, and the new state. A kernel of zeros is
      returned unchanged.

    Raises:
      ValueError: if no kernel is found, if it is not clear what a kernel does, or if the bound is
        negative.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.diag(jnp.array([1.0, 4.0])), "bias": jnp.ones(2)}
      >>> state = lipschitz.spectral_normalization_state(params, jax.random.key(0))
      >>> normalized, state = lipschitz.spectral_normalize(params, state)
      >>> print(jnp.diagonal(normalized["kernel"]), normalized["bias"])
      [0.25 1.  ] [1. 1.]

    References:
      Miyato, Kataoka, Koyama and Yoshida, `Spectral Normalization for Generative Adversarial
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018, who normalize the reshaped kernel.
    """
    check_nonnegative(bound=bound)
    chosen = choose_kernels("spectral_normalize", params, operators, where)
    norms, state = advance(chosen, operators, state)

    def normalized(path: str, kernel: jax.Array) -> jax.Array:
        if path not in norms:
            return kernel
        wide = float_kernel(kernel)
        sigma = norms[path](wide)
        factor = shaped(
            bound / jnp.where(sigma == 0, 1, sigma), wide, linear_map_of(path, operators)
        )
        return (wide * factor).astype(kernel.dtype)

    return map_named(normalized, params), state
