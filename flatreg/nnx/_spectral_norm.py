"""An NNX layer with its norm set: W · bound/σ(A), where A is what the layer does to an input."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from flatreg._core.checks import check_nonnegative
from flatreg.lipschitz import spectral_normalization_state
from flatreg.lipschitz.control.layer import normalized_layer, operators_of_layer
from flatreg.nnx._variables import GRAPH, as_pure, copied


class SpectralNorm(nnx.Module):
    r"""Spectral normalization of a layer's true operator: every kernel acts as W · bound/σ(A_W).

    A is the linear map of the layer for inputs of this size, with its strides, padding, dilation
    and groups; ``nnx.SpectralNorm`` takes the norm of the reshaped kernel instead, which is not
    that of a convolution, and overwrites it. Here the stored kernels are left alone, always, and
    so are biases. Gradients go through W and σ = ⟨v, A_W(u)⟩, with u and v held constant.

    One power iteration a call goes on from the statistics ``u`` and ``sigma``, which
    ``model.train()`` lets a call update and ``model.eval()`` does not; the first call that updates
    them (and each one before it) makes 50 more. σ is approached from below. Under ``nnx.vmap`` over
    layers every call costs as much as the first.

    Args:
      layer: any module of dense layers and convolutions, called as ``layer(x)``.
      x: an example input, or anything that has its shape and dtype.
      bound: > 0, the norm; of each of the kernels, if there are several.
      use_running_average: whether to start in evaluation mode, as of ``nnx.BatchNorm``.
      rngs: draws the start of the power iteration, from ``params``.

    Attributes:
      layer: the layer with its parameters as they are trained.
      u: ``nnx.BatchStat`` of each kernel by its path: about the input that it stretches most.
      sigma: likewise, its norm at the last update, a lower bound; zero before the first.

    Raises:
      ValueError: if a kernel has no linear map, or there is none; if the input has another size
        than ``x`` and the norm depends on it; if the bound is negative.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from flatreg.nnx import SpectralNorm
      >>> rngs, x = nnx.Rngs(0), jnp.ones((2, 8, 8, 3))
      >>> conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
      >>> layer = SpectralNorm(conv, x, bound=2.0, rngs=rngs)
      >>> y = layer(x)
      >>> list(layer.u), bool(layer.sigma["kernel"][...] > 0)
      (['kernel'], True)

    References:
      Miyato, Kataoka, Koyama and Yoshida, `Spectral Normalization for Generative Adversarial
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018 (there of the reshaped kernel).
    """

    def __init__(
        self,
        layer: Callable[[Any], Any],
        x: Any,
        *,
        bound: float = 1.0,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check_nonnegative(bound=bound)
        self.layer, self.bound, self.use_running_average = layer, bound, use_running_average
        params, _, operators = self._parts(x)
        state = spectral_normalization_state(params, rngs.params(), operators=operators)
        self.u = nnx.data({path: nnx.BatchStat(u) for path, u in state.inputs.items()})
        self.sigma = nnx.data({path: nnx.BatchStat(s) for path, s in state.norms.items()})

    def __call__(self, x: jax.Array) -> Any:
        """Runs the normalized layer."""
        params, merged, operators = self._parts(x)
        u, sigma = ({k: v[...] for k, v in stats.items()} for stats in (self.u, self.sigma))
        normalized, u, sigma = normalized_layer(params, u, sigma, self.bound, operators)
        if not self.use_running_average:
            for path in operators:
                self.u[path][...], self.sigma[path][...] = u[path], sigma[path]
        layer = merged(normalized)
        y = layer(x)
        nnx.update(self.layer, _split(layer)[2])  # random counts, statistics of its own
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by ``nnx.view``.

        Args:
          use_running_average: whether the view evaluates.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _parts(self, x: Any) -> Any:
        """The layer's parameters, itself as a function of them, and its linear maps."""
        graphdef, params, others = _split(self.layer)
        params = as_pure(params)

        def merged(params: Any) -> Any:
            return nnx.merge(graphdef, params, copied(others))

        operators = operators_of_layer(lambda p, x: merged(p)(x), params, x, self.layer)
        return params, merged, operators


def _split(layer: Any) -> Any:
    """Structure, parameters and all other Variables."""
    return nnx.split(layer, nnx.Param, ..., **GRAPH)
