"""Projections that bound the norms of kernels, W / max(1, ‖W‖/bound).

Each projection is an Optax transformation that comes last in a chain. It changes the updates such
that the kernels are within the bound after ``optax.apply_updates``.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scalars
from flatreg._core.tree import map_named
from flatreg.lipschitz.control.kernels import (
    Operators,
    Where,
    check_params,
    choose_kernels,
)
from flatreg.lipschitz.control.power_state import PowerState, advance, increment, start, value_at
from flatreg.lipschitz.norms.matrix_norms import induced_norm
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.linear import float_kernel
from flatreg.typing import Grads, Params, ScalarOrSchedule

Kernels: TypeAlias = dict[str, jax.Array]
Norms: TypeAlias = dict[str, jax.Array]


def project_spectral_norm(
    bound: ScalarOrSchedule,
    *,
    norm: Literal["power", "upper_bound"] = "power",
    key: jax.Array | None = None,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Bounds spectral norms: W ← W / max(1, σ(A)/bound) after every step.

    Args:
      bound: the largest norm, > 0, a number or a schedule.
      norm: how σ(A) is computed. "power" does one power iteration per step, and 50 more in the
        first step. It is cheap, but it approaches σ from below, so a norm may slightly exceed the
        bound until the iteration has caught up. "upper_bound" uses
        :func:`spectral_norm_upper_bound`, which guarantees the bound after every step, but shrinks
        the kernels of strided convolutions more than necessary. For a dense kernel, its cost is of
        the order of out³, independent of the batch size. ``flatreg.every(…, 10)`` projects only on
        every tenth step, which reduces the cost to a tenth.
      key: the random key for the start of the power iteration. If None, ``jax.random.key(0)``.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)``. If
        None, the leaves called ``kernel`` are bounded: those with two axes as dense kernels, all
        others as convolutions. "power" then assumes stride 1 and circular padding on a grid of at
        least 16 places per axis, whereas "upper_bound" is valid for convolutions of any stride with
        zero or circular padding.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves. To bound several groups of layers
        differently, chain several projections.

    Returns:
      A gradient transformation, to be put last in the chain, whose state is a :class:`PowerState`.

    Raises:
      ValueError: if the bound is not positive, or if ``norm`` is neither "power" nor "upper_bound";
        in ``init``, if no kernel is found.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
      >>> tx = optax.chain(optax.sgd(0.1), lipschitz.project_spectral_norm(1.0))
      >>> grads = optax.tree.zeros_like(params)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(jnp.diagonal(optax.apply_updates(params, updates)["kernel"]).round(3))
      [0.333 1.   ]

    References:
      Gouk, Frank, Pfahringer and Cree, `Regularisation of Neural Networks by Enforcing Lipschitz
      Continuity <https://arxiv.org/abs/1804.04368>`_, 2021.
    """
    if norm not in ("power", "upper_bound"):
        raise ValueError(
            f"norm must be 'power' or 'upper_bound', got {norm!r}: write norm='power'."
        )

    def init(chosen: Kernels) -> PowerState:
        if norm == "power":
            return start(jax.random.key(0) if key is None else key, chosen, operators)
        return _counter()

    def power(chosen: Kernels, state: PowerState) -> tuple[Norms, PowerState]:
        functions, state = advance(chosen, operators, state)
        return {path: functions[path](kernel) for path, kernel in chosen.items()}, state

    def upper_bound(chosen: Kernels, state: PowerState) -> tuple[Norms, PowerState]:
        maps = {} if operators is None else operators
        norms = {
            path: spectral_norm_upper_bound(kernel, maps.get(path))
            for path, kernel in chosen.items()
        }
        return norms, state._replace(count=increment(state.count))

    norms_of = power if norm == "power" else upper_bound
    return _projection("project_spectral_norm", bound, init, norms_of, operators, where)


def project_norm(
    ord: float, bound: ScalarOrSchedule, *, where: Where | None = None
) -> optax.GradientTransformation:
    r"""Bounds induced norms: W ← W / max(1, ‖W‖ₚ/bound) after every step, with p = 1 or ∞.

    ‖W‖ₚ is the norm from ℓₚ to ℓₚ, :func:`induced_norm`, of a dense kernel. As in the paper, the
    whole kernel is rescaled.

    Args:
      ord: p, either 1 or ``jnp.inf``. For 2, use :func:`project_spectral_norm`.
      bound: the largest norm, > 0, a number or a schedule.
      where: a predicate on the path of a leaf, which selects the kernels. If None, the leaves
        called ``kernel``. It must exclude the kernels of convolutions.

    Returns:
      A gradient transformation, to be put last in the chain.

    Raises:
      ValueError: if the bound is not positive; in ``init``, if ``ord`` is neither 1 nor
        ``jnp.inf``, if no kernel is found, or if a kernel does not have two axes.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), lipschitz.project_norm(1, 3.5))
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0.5  1. ]
       [ 1.5 -2. ]]

    References:
      Gouk, Frank, Pfahringer and Cree, `Regularisation of Neural Networks by Enforcing Lipschitz
      Continuity <https://arxiv.org/abs/1804.04368>`_, 2021.
    """

    def norms_of(chosen: Kernels, state: PowerState) -> tuple[Norms, PowerState]:
        norms = {path: induced_norm(kernel, ord) for path, kernel in chosen.items()}
        return norms, state._replace(count=increment(state.count))

    def init(chosen: Kernels) -> PowerState:
        # Checks ord and the shapes; the values of the kernels are not read.
        jax.eval_shape(lambda: norms_of(optax.tree.zeros_like(chosen), _counter())[0])
        return _counter()

    return _projection("project_norm", bound, init, norms_of, None, where)


def _counter() -> PowerState:
    """Returns a state that only counts steps."""
    return PowerState(jnp.zeros((), jnp.int32), {}, {})


def _projection(
    name: str,
    bound: ScalarOrSchedule,
    init_kernels: Callable[[Kernels], PowerState],
    norms_of: Callable[[Kernels, PowerState], tuple[Norms, PowerState]],
    operators: Operators | None,
    where: Where | None,
) -> optax.GradientTransformation:
    """Returns a transformation that rescales the kernels whose norm would exceed the bound.

    Args:
      name: the public function, for error messages.
      bound: the largest norm.
      init_kernels: returns the first state for the chosen kernels.
      norms_of: returns the norms of the chosen kernels, and the next state.
      operators: the linear map of each kernel, or None.
      where: a predicate on the path of a leaf, or None.
    """
    check_scalars(bound=bound)
    check_nonnegative(bound=bound)
    if isinstance(bound, int | float) and bound == 0:
        raise ValueError(f"{name} needs a positive bound, got {bound}: write bound=1.0.")

    def init(params: Params) -> PowerState:
        return init_kernels(choose_kernels(name, params, operators, where))

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        check_params(name, params)
        ahead = jax.tree.map(lambda w, u: w + u, params, updates)
        chosen = choose_kernels(name, ahead, operators, where)
        largest = value_at(bound, state.count)
        norms, state = norms_of(chosen, state)

        def projected(path: str, u: jax.Array, w: jax.Array, w_ahead: jax.Array) -> jax.Array:
            if path not in norms:
                return u
            above = norms[path] > largest
            factor = largest / jnp.where(above, norms[path], 1)
            inside = factor * float_kernel(w_ahead) - float_kernel(w)
            return jnp.where(above, inside, u).astype(u.dtype)

        return map_named(projected, updates, params, ahead), state

    return optax.GradientTransformation(init, update)
