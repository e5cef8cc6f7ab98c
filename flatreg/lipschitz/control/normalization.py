"""Spectral normalization, W · bound/σ(A_W), as a reparametrization inside of any loss."""

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg._core.tree import map_named
from flatreg.lipschitz.control.kernels import Operators, PowerState, Where, advance, kernels, start
from flatreg.lipschitz.operators.linear_maps import widened
from flatreg.typing import Params, Scalar


def spectral_normalization_state(
    params: Params,
    key: jax.Array,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> PowerState:
    """The state that :func:`spectral_normalize` starts from; no values are read.

    Args:
      params: a tree with the kernels.
      key: draws the start of the power iteration.
      operators: as for :func:`spectral_norm_penalty`.
      where: likewise.

    Returns:
      :class:`PowerState`.

    Raises:
      ValueError: if no kernel is found.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
      >>> lipschitz.spectral_normalization_state(params, jax.random.key(0)).inputs["kernel"].shape
      (4,)
    """
    return start(key, kernels("spectral_normalize", params, operators, where), operators)


def spectral_normalize(
    params: Params,
    state: PowerState,
    *,
    bound: Scalar = 1.0,
    operators: Operators | None = None,
    where: Where | None = None,
) -> tuple[Params, PowerState]:
    r"""Spectral normalization: every kernel becomes W · bound/σ(A), so that its norm is ``bound``.

    Inside of a loss, ``loss(spectral_normalize(params, state)[0])``: gradients go through W and
    through σ = ⟨v, A_W(u)⟩, with u and v held constant, so that they are orthogonal to W. One power
    iteration a call, after 50 more in the first. σ is approached from below, so that a norm may
    exceed the bound a little while the kernel moves fast.

    For evaluation call it in the same way and drop the new state.

    Args:
      params: a tree with the kernels.
      state: from :func:`spectral_normalization_state`, then what this returns (as auxiliary output
        of the loss).
      bound: > 0, the norm.
      operators: what each kernel does, as for :func:`spectral_norm_penalty`.
      where: likewise.

    Returns:
      The tree with normalized kernels, in its dtypes, and the new state. A kernel of zeros stays.

    Raises:
      ValueError: if no kernel is found, or the bound is negative.

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
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018 (there of the reshaped kernel).
    """
    check_nonnegative(bound=bound)
    norms, state = advance(
        kernels("spectral_normalize", params, operators, where), operators, state
    )

    def normalized(path: str, kernel: jax.Array) -> jax.Array:
        if path not in norms:
            return kernel
        wide = widened(kernel)
        sigma = norms[path](wide)
        return (wide * (bound / jnp.where(sigma == 0, 1, sigma))).astype(kernel.dtype)

    return map_named(normalized, params), state
