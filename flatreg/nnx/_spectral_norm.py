"""Spectral normalization of an NNX layer: W · bound/σ(A), where A is the layer's linear map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from flatreg._core.checks import check_nonnegative
from flatreg._flax.spectral_norm import linear_maps_of_layer, normalized_layer
from flatreg.lipschitz import Operators, spectral_normalization_state
from flatreg.nnx._variables import GRAPH, as_pure, copied
from flatreg.typing import Params


class SpectralNorm(nnx.Module):
    r"""Spectral normalization of a layer: every kernel is used as W · bound/σ(A_W).

    The resulting norm is close to ``bound`` but can be slightly larger, because power iteration
    approaches σ from below, and because the kernel is rounded to its dtype.

    A_W is the linear map of the layer for inputs of this size, with its strides, padding, dilation
    and groups. ``nnx.SpectralNorm`` uses the norm of the reshaped kernel instead, which is not the
    norm of a convolution, and overwrites the kernel. Here, the stored kernels and biases are not
    changed. Gradients flow through W and through σ = ⟨v, A_W(u)⟩, with u and v held constant.

    A call does one power iteration, which continues from the statistics ``u`` and ``sigma``. Calls
    update the statistics after ``model.train()``, but not after ``model.eval()``. The first call
    that updates the statistics does 50 more iterations, and so does every call before it. Under
    ``nnx.vmap`` over layers, every call costs as much as the first.

    Args:
      layer: a module of dense layers and convolutions, which is called as ``layer(x)``.
      x: an example input, or anything with its shape and dtype.
      bound: the norm that the normalized kernels have approximately, > 0. If the layer has
        several kernels, each of them gets this norm.
      use_running_average: whether to start in evaluation mode, as in ``nnx.BatchNorm``.
      rngs: the random streams; ``params`` provides the key for the start of the power iteration.

    Attributes:
      layer: the layer with the parameters that are trained.
      u: one ``nnx.BatchStat`` per kernel, by path, which approximates the input that the linear map
        stretches most.
      sigma: one ``nnx.BatchStat`` per kernel, by path, with its norm before normalization at the
        last update, as a lower bound; zero before the first update.

    Raises:
      ValueError: if the layer lacks a kernel or a kernel lacks a linear map; if the input has a
        different size than ``x`` and the norm depends on the size; or if the bound is negative.

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
      Networks <https://arxiv.org/abs/1802.05957>`_, ICLR 2018, who normalize the reshaped kernel.
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
        parts = self._parts(x)
        state = spectral_normalization_state(parts.params, rngs.params(), operators=parts.operators)
        self.u = nnx.data({path: nnx.BatchStat(u) for path, u in state.inputs.items()})
        self.sigma = nnx.data({path: nnx.BatchStat(s) for path, s in state.norms.items()})

    def __call__(self, x: jax.Array) -> Any:
        """Applies the normalized layer.

        Args:
          x: the input.

        Returns:
          The output of the layer.
        """
        parts = self._parts(x)
        u, sigma = ({k: v[...] for k, v in stats.items()} for stats in (self.u, self.sigma))
        new = normalized_layer(parts.params, u, sigma, self.bound, parts.operators)
        if not self.use_running_average:
            for path in parts.operators:
                self.u[path][...], self.sigma[path][...] = new.u[path], new.sigma[path]
        layer = parts.with_params(new.params)
        y = layer(x)
        before, after = (_split(one)[2] for one in (self.layer, layer))
        # Random counts and statistics of the layer. In evaluation mode, nothing is written, so that
        # the model can be called inside a transformation of JAX.
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        if any(new is not old for old, new in pairs):
            nnx.update(self.layer, after)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Switches between training and evaluation mode; ``nnx.view`` calls it.

        Args:
          use_running_average: True for evaluation mode, False for training mode, None to keep the
            mode.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _parts(self, x: Any) -> "_Parts":
        """Splits the layer into parts and finds its linear maps for inputs like ``x``."""
        graphdef, params, others = _split(self.layer)
        params = as_pure(params)

        def with_params(params: Params) -> Any:
            return nnx.merge(graphdef, params, copied(others))

        operators = linear_maps_of_layer(lambda p, x: with_params(p)(x), params, x, self.layer)
        return _Parts(params, with_params, operators)


class _Parts(NamedTuple):
    """The parts of a layer.

    Attributes:
      params: the parameters.
      with_params: a function that returns the layer with other parameters.
      operators: the linear maps of the kernels.
    """

    params: Params
    with_params: Callable[[Params], Any]
    operators: Operators


def _split(layer: Any) -> Any:
    """Returns the structure, the parameters and all other Variables."""
    return nnx.split(layer, nnx.Param, ..., **GRAPH)
