"""The state of power iterations on several kernels, and one iteration per training step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.tree import inner, wide_dtype
from flatreg.lipschitz.control.kernels import Operators, linear_map_of, opened
from flatreg.lipschitz.norms.power_iteration import power_iteration
from flatreg.lipschitz.operators.linear import LinearMap, float_kernel
from flatreg.lipschitz.operators.stacked import Stacked
from flatreg.typing import ScalarOrSchedule

WARM_UP = 50  # additional iterations in the first update

NormFn: TypeAlias = Callable[[jax.Array], jax.Array]
"""The norm of a linear map, or the norms of a stack of layers, as a function of the kernel."""


class PowerState(NamedTuple):
    """The state of power iterations that continue from one training step to the next.

    Attributes:
      count: the number of steps so far.
      inputs: the vector u of every kernel by its path. It approximates the input that the linear
        map stretches most. A stack of layers has one vector per layer.
      norms: σ of every kernel by its path, from the most recent step. It is a lower bound on the
        norm, and zero before the first step. A stack of layers has one norm per layer.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax
    inputs: dict[str, jax.Array]
    norms: dict[str, jax.Array]


def start(key: jax.Array, chosen: dict[str, jax.Array], operators: Operators | None) -> PowerState:
    """Returns a state with random inputs; the values of the kernels are not read."""
    if not chosen:
        # optax.tree.map_params maps over the prefix of the state that init returns for no kernels.
        leaf: Any = jnp.zeros(())
        return PowerState(jnp.zeros((), jnp.int32), leaf, leaf)

    def draw(i: int, path: str, kernel: Any) -> jax.Array:
        shape = linear_map_of(path, operators).input_shape_of(kernel)
        dtype = wide_dtype(kernel.dtype)
        return jax.random.normal(jax.random.fold_in(key, i), shape, dtype)

    inputs = {path: draw(i, path, kernel) for i, (path, kernel) in enumerate(chosen.items())}
    stacks = {path: _is_stacked(linear_map_of(path, operators)) for path in chosen}
    norms = {path: jnp.zeros(u.shape[: stacks[path]], u.dtype) for path, u in inputs.items()}
    return PowerState(jnp.zeros((), jnp.int32), inputs, norms)


def advance(
    chosen: dict[str, jax.Array], operators: Operators | None, state: PowerState
) -> tuple[dict[str, NormFn], PowerState]:
    """Does one iteration per kernel; the first step does ``WARM_UP`` more before it.

    Args:
      chosen: the kernels by path.
      operators: the linear maps of the kernels by path, or None if all kernels are dense.
      state: the state of the iterations.

    Returns:
      A tuple of two: a dictionary with the function W ↦ ⟨v, A_W(u)⟩ of each kernel, with u and v
      held constant, whose value and gradient at the kernel are σ and ∇σ; and the new state.
    """
    fixed = {path: jax.lax.stop_gradient(float_kernel(kernel)) for path, kernel in chosen.items()}
    maps = {path: linear_map_of(path, operators) for path in chosen}

    def warm_up(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            path: _iterated(kernel, maps[path], inputs[path], WARM_UP)[1]
            for path, kernel in fixed.items()
        }

    inputs = jax.lax.cond(state.count == 0, warm_up, lambda inputs: inputs, state.inputs)
    found = {path: _iterated(kernel, maps[path], inputs[path], 1) for path, kernel in fixed.items()}

    def norm_fn(path: str) -> NormFn:
        _, u, v = found[path]
        product = jax.vmap(inner) if _is_stacked(maps[path]) else inner
        return lambda kernel: product(v, maps[path].apply(float_kernel(kernel), u)).astype(u.dtype)

    state = PowerState(
        increment(state.count),
        {path: u for path, (_, u, _) in found.items()},
        {path: sigma for path, (sigma, _, _) in found.items()},
    )
    return {path: norm_fn(path) for path in chosen}, state


def _is_stacked(linear_map: LinearMap) -> bool:
    """Whether the map has one norm per layer of a stack."""
    return isinstance(linear_map, Stacked) or isinstance(
        getattr(linear_map, "linear_map", None), Stacked
    )


def _iterated(
    kernel: jax.Array, linear_map: LinearMap, u: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes some steps of power iteration in every layer of a stack separately."""
    kernel, layers = opened(kernel, linear_map)
    if not isinstance(layers, Stacked):
        return power_iteration(kernel, layers, u, steps)
    one = layers.linear_map
    iterate: Any = jax.vmap(lambda kernel, u: power_iteration(kernel, one, u, steps))
    found: tuple[jax.Array, jax.Array, jax.Array] = iterate(layers.unstacked(kernel), u)
    return found


def increment(count: jax.Array) -> jax.Array:
    """Returns count + 1 without overflow."""
    more: Any = optax.safe_increment(count)
    return jnp.asarray(more)


def value_at(value: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """Returns a scalar, or the value of a schedule at this count."""
    scalar: Any = value(count) if callable(value) else value
    return jnp.asarray(scalar)
