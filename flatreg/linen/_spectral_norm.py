"""A Linen layer with its norm set: W · bound/σ(A), where A is what the layer does to an input."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core

from flatreg.lipschitz import spectral_normalization_state
from flatreg.lipschitz.control.layer import normalized_layer, operators_of_layer


class SpectralNorm(nn.Module):
    r"""Spectral normalization of a layer's true operator: every kernel acts as W · bound/σ(A_W).

    A is the linear map of the layer for inputs of this size, with its strides, padding, dilation
    and groups; ``flax.linen.SpectralNorm`` takes the norm of the reshaped kernel instead, which is
    not that of a convolution. Biases are left alone, and so is the stored kernel, always. Gradients
    go through W and σ = ⟨v, A_W(u)⟩, with u and v held constant.

    One power iteration a call goes on from the statistics ``u`` and ``sigma`` in ``batch_stats``;
    the first call that updates them (and each one before it) makes 50 more. σ is approached from
    below. Under ``nn.vmap`` over layers every call costs as much as the first.

    A layer of several kernels has the norm ``bound`` in each of them. Under ``nn.remat`` wrap the
    block around it, whose ``train`` can be static.

    Attributes:
      layer: any module of dense layers and convolutions, called as ``layer(x)``.
      bound: > 0, the norm.

    Raises:
      ValueError: if a kernel has no linear map, or there is none; if the input has another size
        than at ``init`` and the norm depends on it; if the bound is negative.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn
      >>> from flatreg.linen import SpectralNorm
      >>> class Critic(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         conv = nn.Conv(4, (3, 3), strides=2)
      ...         x = nn.relu(SpectralNorm(conv)(x, update_stats=train))
      ...         return SpectralNorm(nn.Dense(1))(x.mean((1, 2)), update_stats=train)
      >>> x, model = jnp.ones((2, 8, 8, 3)), Critic()
      >>> variables = model.init(jax.random.key(0), x, train=False)
      >>> y, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> {name: list(layer) for name, layer in updated["batch_stats"].items()}
      {'SpectralNorm_0': ['u', 'sigma'], 'SpectralNorm_1': ['u', 'sigma']}

    References:
      Miyato, Kataoka, Koyama and Yoshida, `Spectral Normalization for Generative Adversarial
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018 (there of the reshaped kernel).
    """

    layer: nn.Module
    bound: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, update_stats: bool) -> Any:
        """Runs the normalized layer.

        Args:
          x: the input.
          update_stats: whether to keep the statistics, in training; ``batch_stats`` is mutable
            then.

        Returns:
          What the layer returns.
        """
        if self.is_initializing():
            self.layer(x)  # makes the parameters
        unbound, variables = self.layer.unbind()
        params = core.unfreeze(variables.get("params", {}))  # type: ignore[arg-type]
        rngs = dict.fromkeys(self.scope.rngs, jax.random.key(0)) if self.scope else {}

        def call(params: Any, x: Any) -> Any:
            return unbound.apply({**variables, "params": params}, x, rngs=rngs, mutable=True)

        operators = operators_of_layer(call, params, x, self.layer)

        def start() -> Any:
            key = self.make_rng("params")
            return spectral_normalization_state(params, key, operators=operators).inputs

        u = self.variable("batch_stats", "u", start)
        sigma = self.variable(
            "batch_stats",
            "sigma",
            lambda: {path: jnp.zeros((), x.dtype) for path, x in u.value.items()},
        )
        normalized, new_u, new_sigma = normalized_layer(
            params, u.value, sigma.value, self.bound, operators
        )
        if update_stats and not self.is_initializing():
            u.value, sigma.value = new_u, new_sigma

        def run(layer: nn.Module) -> Any:
            return layer(x)

        # Not mutable: the stored kernels stay.
        return nn.map_variables(run, "params", lambda _: {"params": normalized})(self.layer)
