"""What the SpectralNorm modules of Linen and NNX share: normalizing the kernels of one layer.

A module stores the vector u and the norm σ of the power iteration for each kernel, under the path
of the kernel. Both are floating-point, because statistics may be averaged over devices or
microbatches. σ = 0 means that the iteration has not begun.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.tree import named_leaves, wide_dtype
from flatreg.lipschitz import Operators, PowerState, spectral_normalize
from flatreg.lipschitz.control.kernels import is_kernel
from flatreg.lipschitz.operators.linear_maps import Kernels, find_kernels
from flatreg.typing import Params

ByPath: TypeAlias = dict[str, jax.Array]
"""Arrays, keyed by the paths of the kernels."""


class Normalized(NamedTuple):
    """Normalized parameters and the new statistics.

    Attributes:
      params: the parameters with normalized kernels.
      u: the vectors of the power iteration.
      sigma: the norms of the kernels before normalization, as lower bounds.
    """

    params: Params
    u: ByPath
    sigma: ByPath


def linear_maps_of_layer(
    call: Callable[[Params, jax.Array], object], params: Params, x: jax.Array, layer: object
) -> Operators:
    """Returns the linear map of every kernel in ``call(params, x)``; raises if one is missing."""
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    maps, unmapped = Kernels({}, {})
    if jax.tree.leaves(params):
        maps, unmapped = find_kernels(call, params, example)
    missing = [
        path
        for path in named_leaves(params)
        if path in unmapped or (is_kernel(path) and path not in maps)
    ]
    if missing or not maps:
        kernel = f"no linear map of the input for {', '.join(missing)}" if missing else "no kernel"
        raise ValueError(
            f"SpectralNorm finds {kernel} in {type(layer).__name__}: wrap each dense layer or "
            "convolution by itself where it is created, SpectralNorm(Dense(…)) or "
            "SpectralNorm(Conv(…)), and do not wrap other layers."
        )
    return maps


def normalized_layer(
    params: Params, u: ByPath, sigma: ByPath, bound: float, operators: Operators
) -> Normalized:
    """Normalizes the kernels of a layer and does one power iteration.

    Args:
      params: the parameters of the layer.
      u: the vectors of the power iteration, by the paths of the kernels.
      sigma: the norms at the last iteration, by the paths of the kernels.
      bound: the norm of the normalized kernels.
      operators: the linear maps of the kernels.

    Returns:
      The parameters with normalized kernels, and the new ``u`` and ``sigma``.

    Raises:
      ValueError: if the inputs of a kernel have a different shape than its ``u``.
    """
    leaves = named_leaves(params)
    for path, linear_map in operators.items():
        shape = linear_map.input_shape_of(leaves[path])
        if u[path].shape != shape:
            raise ValueError(
                f"SpectralNorm was created for inputs of {path} of shape {u[path].shape}, but got "
                f"inputs of shape {shape}, and the norm depends on this shape. Create new "
                "statistics from an input of the new size: batch_stats=model.init(key, x, …)"
                "['batch_stats'] in Linen, SpectralNorm(layer, x, rngs=rngs) in NNX."
            )
    wide = {path: wide_dtype(leaves[path].dtype) for path in operators}
    has_begun = jnp.stack([jnp.all(sigma[path] > 0) for path in operators]).all()
    state = PowerState(
        has_begun.astype(jnp.int32),
        {path: u[path].astype(dtype) for path, dtype in wide.items()},
        {path: sigma[path].astype(dtype) for path, dtype in wide.items()},
    )
    params, state = spectral_normalize(params, state, bound=bound, operators=operators)
    return Normalized(
        params,
        {path: x.astype(u[path].dtype) for path, x in state.inputs.items()},
        {path: x.astype(sigma[path].dtype) for path, x in state.norms.items()},
    )
