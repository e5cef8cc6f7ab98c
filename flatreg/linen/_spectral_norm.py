"""Spectral normalization of a Linen layer: W · bound/σ(A), where A is the layer's linear map."""

from typing import Any

import flax.linen as nn
import jax
from flax import core

from flatreg._flax.spectral_norm import linear_maps_of_layer, normalized_layer
from flatreg.lipschitz import PowerState, spectral_normalization_state
from flatreg.typing import Params


class SpectralNorm(nn.Module):
    r"""Spectral normalization of a layer: every kernel is used as W · bound/σ(A_W).

    The resulting norm is close to ``bound`` but can be slightly larger, because power iteration
    approaches σ from below, and because the kernel is rounded to its dtype.

    A_W is the linear map of the layer for inputs of this size, with its strides, padding, dilation
    and groups. ``flax.linen.SpectralNorm`` uses the norm of the reshaped kernel instead, which is
    not the norm of a convolution. Biases and the stored kernels are not changed. Gradients flow
    through W and through σ = ⟨v, A_W(u)⟩, with u and v held constant.

    A call does one power iteration, which continues from the statistics ``u`` and ``sigma`` in
    ``batch_stats``. The first call that updates the statistics, and every call before it, does 50
    more iterations. Under ``nn.vmap`` over layers, every call costs as much as the first.

    If the layer has several kernels, each of them gets the norm ``bound``. To use ``nn.remat``,
    apply it to the block around this module, so that its argument ``train`` can be static.

    Attributes:
      layer: a module of dense layers and convolutions, which is called as ``layer(x)``.
      bound: the norm that the normalized kernels have approximately, > 0.

    Raises:
      ValueError: if the layer lacks a kernel or a kernel lacks a linear map; if the input has a
        different size than at ``init`` and the norm depends on the size; or if the bound is
        negative.

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
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018, who normalize the reshaped kernel.
    """

    layer: nn.Module
    bound: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, update_stats: bool) -> Any:
        """Applies the normalized layer.

        Args:
          x: the input.
          update_stats: whether to update the statistics, as in training. If so, ``batch_stats``
            must be mutable.

        Returns:
          The output of the layer.
        """
        if self.is_initializing():
            self.layer(x)  # creates the parameters
        unbound, variables = self.layer.unbind()
        params = core.unfreeze(variables.get("params", {}))  # type: ignore[arg-type]
        rngs = dict.fromkeys(self.scope.rngs, jax.random.key(0)) if self.scope else {}

        def call(params: Params, x: jax.Array) -> Any:
            return unbound.apply({**variables, "params": params}, x, rngs=rngs, mutable=True)

        operators = linear_maps_of_layer(call, params, x, self.layer)

        def start(key: jax.Array) -> PowerState:
            return spectral_normalization_state(params, key, operators=operators)

        u = self.variable("batch_stats", "u", lambda: start(self.make_rng("params")).inputs)
        sigma = self.variable("batch_stats", "sigma", lambda: start(jax.random.key(0)).norms)
        new = normalized_layer(params, u.value, sigma.value, self.bound, operators)
        if update_stats and not self.is_initializing():
            u.value, sigma.value = new.u, new.sigma

        def run(layer: nn.Module) -> Any:
            return layer(x)

        # The mapped parameters are not mutable, so the stored kernels are not changed.
        return nn.map_variables(run, "params", lambda _: {"params": new.params})(self.layer)
