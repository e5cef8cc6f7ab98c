"""One layer normalized as it acts: what the SpectralNorm modules of Linen and NNX have in common.

Of the power iteration a module keeps u and σ by the paths of the kernels, as floats only, because
statistics may be averaged over devices or microbatches. σ = 0 tells that it has not begun.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.tree import named_leaves
from flatreg.lipschitz.control.kernels import Operators, PowerState, is_kernel
from flatreg.lipschitz.control.normalization import spectral_normalize
from flatreg.lipschitz.operators.tracing import linear_maps
from flatreg.typing import Params

Vectors: TypeAlias = dict[str, jax.Array]


def operators_of_layer(
    call: Callable[[Params, Any], Any], params: Params, x: Any, layer: object
) -> Operators:
    """The linear map of every kernel in ``call(params, x)``."""
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    operators = linear_maps(call, params, example) if jax.tree.leaves(params) else {}
    missed = [path for path in named_leaves(params) if is_kernel(path) and path not in operators]
    if missed or not operators:
        kernel = f"no linear map of the input for {', '.join(missed)}" if missed else "no kernel"
        raise ValueError(
            f"SpectralNorm finds {kernel} in {type(layer).__name__}: wrap each dense layer or "
            "convolution by itself where it is made, SpectralNorm(Dense(…)) or "
            "SpectralNorm(Conv(…)), and leave other layers unwrapped."
        )
    return operators


def normalized_layer(
    params: Params, u: Vectors, sigma: Vectors, bound: float, operators: Operators
) -> tuple[Params, Vectors, Vectors]:
    """Normalized parameters, the new u and σ; ``spectral_normalize`` with this state."""
    leaves = named_leaves(params)
    for path, linear_map in operators.items():
        shape = linear_map.input_shape_of(leaves[path])
        if u[path].shape != shape:
            raise ValueError(
                f"SpectralNorm was made for inputs of {path} of shape {u[path].shape}, but this "
                f"one is {shape}, and the norm depends on it: make the statistics anew from "
                "an input of that size, batch_stats=model.init(key, x, …)['batch_stats'] in Linen, "
                "SpectralNorm(layer, x, rngs=rngs) in NNX."
            )
    wide = {path: jnp.promote_types(leaves[path].dtype, jnp.float32) for path in operators}
    begun = jnp.stack([sigma[path] > 0 for path in operators]).all()
    state = PowerState(
        begun.astype(jnp.int32),
        {path: u[path].astype(dtype) for path, dtype in wide.items()},
        {path: sigma[path].astype(dtype) for path, dtype in wide.items()},
    )
    params, state = spectral_normalize(params, state, bound=bound, operators=operators)
    new_u = {path: x.astype(u[path].dtype) for path, x in state.inputs.items()}
    return params, new_u, {path: x.astype(sigma[path].dtype) for path, x in state.norms.items()}
