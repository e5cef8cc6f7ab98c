"""Which leaves of a tree are kernels, what each of them does, and one power iteration a step.

By default a kernel is a leaf of that name, as Flax names those of dense layers and convolutions;
biases, scales of norm layers and embeddings are left alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import inner, named_leaves
from flatreg.lipschitz.norms.power_iteration import power_iteration
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.linear_maps import Dense, LinearMap, widened
from flatreg.typing import Params

WARM_UP = 50  # iterations in the first update
GRID = 16  # frequencies an axis, where the size of the input is unknown

Operators: TypeAlias = Mapping[str, LinearMap]
"""Linear maps by the paths of their kernels, as :func:`linear_maps` finds them."""

Where: TypeAlias = Callable[[str], bool]
"""A predicate on a leaf's path, such as ``"params/Dense_0/kernel"``."""


class PowerState(NamedTuple):
    """State of a power iteration that goes on from step to step.

    Attributes:
      count: the number of steps so far.
      inputs: u of each kernel, by path: about the input that it stretches most.
      norms: σ of each kernel at the last step, a lower bound; zero before the first.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax does
    inputs: dict[str, jax.Array]
    norms: dict[str, jax.Array]


def is_kernel(path: str) -> bool:
    """Whether the leaf is called ``kernel``, in Linen, NNX or any other tree."""
    return path.rpartition("/")[2] == "kernel"


def kernels(
    name: str, params: Params, operators: Operators | None, where: Where | None
) -> dict[str, jax.Array]:
    """The chosen leaves by path: those of ``operators``, or of the name, which ``where`` keeps."""
    leaves = named_leaves(params)
    if operators is not None and not operators.keys() <= leaves.keys():
        unknown = ", ".join(sorted(operators.keys() - leaves.keys()))
        raise ValueError(
            f"{name}: operators names {unknown}, but the paths of the parameters are "
            f"{', '.join(leaves)}: trace the same tree, operators=flatreg.lipschitz.linear_maps("
            "lambda params, x: …, params, x)."
        )
    keep = where or (is_kernel if operators is None else lambda path: True)
    candidates = leaves if operators is None else operators
    chosen = {path: leaves[path] for path in candidates if keep(path)}
    if not chosen:
        raise ValueError(
            f"{name} finds no kernel among {', '.join(leaves) or 'no leaves at all'}: name them by "
            "where=lambda path: path.endswith('w'), say, or by operators=flatreg.lipschitz."
            "linear_maps(function, params, x)."
        )
    return chosen


def map_of(path: str, kernel: Any, operators: Operators | None) -> LinearMap:
    """The kernel's linear map: as given, dense, or else a convolution of stride 1 on a torus."""
    if operators is not None:
        return operators[path]
    if kernel.ndim == 2:
        return Dense()
    if not 3 <= kernel.ndim <= 5:
        raise ValueError(
            f"{path} has shape {kernel.shape}, which is no kernel by itself: leave it out by "
            f"where=lambda path: path != {path!r}, or pass operators={{{path!r}: flatreg.lipschitz."
            "Dense()}, if its last axis is the output."
        )
    sizes = (max(GRID, 2 * extent) for extent in kernel.shape[:-2])
    return Convolution((*sizes, kernel.shape[-2]), padding="CIRCULAR")


def increment(count: jax.Array) -> jax.Array:
    """One more, without overflow."""
    more: Any = optax.safe_increment(count)
    return jnp.asarray(more)


def start(key: jax.Array, chosen: dict[str, jax.Array], operators: Operators | None) -> PowerState:
    """Random inputs; no kernel's values are read."""

    def draw(i: int, path: str, kernel: Any) -> jax.Array:
        shape = map_of(path, kernel, operators).input_shape_of(kernel)
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)
        return jax.random.normal(jax.random.fold_in(key, i), shape, dtype)

    inputs = {path: draw(i, path, kernel) for i, (path, kernel) in enumerate(chosen.items())}
    norms = {path: jnp.zeros((), u.dtype) for path, u in inputs.items()}
    return PowerState(jnp.zeros((), jnp.int32), inputs, norms)


def advance(
    chosen: dict[str, jax.Array], operators: Operators | None, state: PowerState
) -> tuple[dict[str, Callable[[jax.Array], jax.Array]], PowerState]:
    """One iteration, after ``WARM_UP`` in the first step; σ of each kernel as its function.

    The function is W ↦ ⟨v, A_W(u)⟩ with u and v held constant: σ there, and its gradient.
    """
    fixed = {path: jax.lax.stop_gradient(widened(kernel)) for path, kernel in chosen.items()}
    maps = {path: map_of(path, kernel, operators) for path, kernel in chosen.items()}

    def warm_up(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            path: power_iteration(kernel, maps[path], inputs[path], WARM_UP)[1]
            for path, kernel in fixed.items()
        }

    inputs = jax.lax.cond(state.count == 0, warm_up, lambda inputs: inputs, state.inputs)
    found = {
        path: power_iteration(kernel, maps[path], inputs[path]) for path, kernel in fixed.items()
    }

    def norm_of(path: str) -> Callable[[jax.Array], jax.Array]:
        _, u, v = found[path]
        return lambda kernel: inner(v, maps[path].apply(widened(kernel), u)).astype(u.dtype)

    state = PowerState(
        increment(state.count),
        {path: u for path, (_, u, _) in found.items()},
        {path: sigma for path, (sigma, _, _) in found.items()},
    )
    return {path: norm_of(path) for path in chosen}, state
