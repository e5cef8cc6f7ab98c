"""Projections onto kernels of bounded norm, W / max(1, ‖W‖/bound), as the last link of a chain.

They act on the updates, so that the parameters are inside of the bound after ``apply_updates``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scalars
from flatreg._core.tree import map_named
from flatreg.lipschitz.control.kernels import (
    Operators,
    PowerState,
    Where,
    advance,
    increment,
    kernels,
    start,
)
from flatreg.lipschitz.control.penalties import scheduled
from flatreg.lipschitz.norms.norms import induced_norm
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.linear_maps import widened
from flatreg.typing import Grads, Params, ScalarOrSchedule

Norms = Callable[[dict[str, jax.Array], Any], tuple[dict[str, jax.Array], Any]]


def project_spectral_norm(
    bound: ScalarOrSchedule,
    *,
    norm: str = "power",
    key: jax.Array | None = None,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""After every step W ← W / max(1, σ(A)/bound): no kernel stretches an input by more.

    Args:
      bound: > 0, a number or a schedule.
      norm: "power", one power iteration a step after 50 in the first: cheap, but σ from below, so
        that a norm may exceed the bound a little until the iteration has caught up. Or
        "upper_bound", :func:`spectral_norm_upper_bound`: a guarantee after every step; it shrinks
        kernels of strided convolutions somewhat too much. Its cost is of the order of out³ for a
        dense kernel and does not depend on the batch; ``flatreg.every(…, 10)`` makes it a tenth.
      key: draws the start of the power iteration; ``jax.random.key(0)`` if None.
      operators: as for :func:`spectral_norm_penalty`. Without them "upper_bound" holds for
        convolutions with zero or circular padding of any stride.
      where: likewise. For other bounds on other layers chain several.

    Returns:
      A transformation, to stand last in the chain; its state is a :class:`PowerState`.

    Raises:
      ValueError: if the bound is not positive, ``norm`` is none of these; in ``init``, if no kernel
        is found.

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
        raise ValueError(f"norm must be 'power' or 'upper_bound', got {norm!r}.")

    def init(chosen: dict[str, jax.Array]) -> PowerState:
        if norm == "power":
            return start(jax.random.key(0) if key is None else key, chosen, operators)
        return _counter()

    def by_power(chosen: dict[str, jax.Array], state: PowerState) -> Any:
        functions, state = advance(chosen, operators, state)
        return {path: functions[path](kernel) for path, kernel in chosen.items()}, state

    def from_above(chosen: dict[str, jax.Array], state: PowerState) -> Any:
        maps = {} if operators is None else operators
        norms = {
            path: spectral_norm_upper_bound(kernel, maps.get(path))
            for path, kernel in chosen.items()
        }
        return norms, state._replace(count=increment(state.count))

    norms_of = by_power if norm == "power" else from_above
    return _projection("project_spectral_norm", bound, init, norms_of, operators, where)


def project_norm(
    ord: float, bound: ScalarOrSchedule, *, where: Where | None = None
) -> optax.GradientTransformation:
    r"""After every step W ← W / max(1, ‖W‖ₚ/bound) for dense kernels, p = 1 or ∞.

    ‖W‖ₚ is the norm induced by ℓₚ, :func:`induced_norm`; the whole kernel is rescaled, as in the
    paper.

    Args:
      ord: 1 or ``jnp.inf``; for 2 take :func:`project_spectral_norm`.
      bound: > 0, a number or a schedule.
      where: a predicate on a leaf's path; by default it is called ``kernel``. Convolutions have to
        be left out.

    Returns:
      A transformation, to stand last in the chain.

    Raises:
      ValueError: if the bound is not positive, or for another ``ord``; in ``init``, if a kernel has
        not two axes.

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
      As for :func:`project_spectral_norm`.
    """

    def norms_of(chosen: dict[str, jax.Array], state: PowerState) -> Any:
        norms = {path: induced_norm(kernel, ord) for path, kernel in chosen.items()}
        return norms, state._replace(count=increment(state.count))

    def init(chosen: dict[str, jax.Array]) -> PowerState:
        jax.eval_shape(lambda: norms_of(optax.tree.zeros_like(chosen), _counter())[0])
        return _counter()

    return _projection("project_norm", bound, init, norms_of, None, where)


def _counter() -> PowerState:
    return PowerState(jnp.zeros((), jnp.int32), {}, {})


def _projection(
    name: str,
    bound: ScalarOrSchedule,
    init_kernels: Callable[[dict[str, jax.Array]], PowerState],
    norms_of: Norms,
    operators: Operators | None,
    where: Where | None,
) -> optax.GradientTransformation:
    """Rescales what the updates lead to, where its norm exceeds the bound."""
    check_scalars(bound=bound)
    check_nonnegative(bound=bound)
    if isinstance(bound, int | float) and bound == 0:
        raise ValueError(f"{name} needs a positive bound, got {bound}: bound=1.0, say.")

    def init(params: Params) -> PowerState:
        return init_kernels(kernels(name, params, operators, where))

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        if params is None:
            raise ValueError(f"{name} needs the kernels: write tx.update(grads, state, params).")
        ahead = jax.tree.map(lambda w, u: w + u, params, updates)
        chosen = kernels(name, ahead, operators, where)
        most = scheduled(bound, state.count)
        norms, state = norms_of(chosen, state)

        def projected(path: str, u: jax.Array, w: jax.Array, w_ahead: jax.Array) -> jax.Array:
            if path not in norms:
                return u
            above = norms[path] > most
            factor = most / jnp.where(above, norms[path], 1)
            inside = factor * widened(w_ahead) - widened(w)
            return jnp.where(above, inside, u).astype(u.dtype)

        return map_named(projected, updates, params, ahead), state

    return optax.GradientTransformation(init, update)
