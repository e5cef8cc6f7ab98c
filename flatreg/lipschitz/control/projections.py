"""Projections that bound the norms of kernels, W / max(1, ‖W‖/bound).

Each projection is an Optax transformation that comes last in a chain. It changes the updates such
that the kernels are within the bound after ``optax.apply_updates``, which rounds them to their
dtype (``rounding.py``).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_nonnegative, check_scalars, is_number
from flatreg._core.tree import map_named, named_leaves, with_standard_promotion
from flatreg.lipschitz.control.kernels import (
    LayerMap,
    Operators,
    Where,
    choose_kernels,
    linear_map_of,
    per_layer,
    shaped,
)
from flatreg.lipschitz.control.power_state import (
    NormFn,
    PowerState,
    advance,
    increment,
    start,
    value_at,
)
from flatreg.lipschitz.control.rounding import applied, finfo, representable
from flatreg.lipschitz.norms.matrix_norms import induced_norm
from flatreg.lipschitz.norms.upper_bounds import spectral_norm_upper_bound
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.linear import LinearMap, float_kernel
from flatreg.typing import Grads, Params, ScalarOrSchedule

Kernels: TypeAlias = dict[str, jax.Array]
NormFns: TypeAlias = dict[str, NormFn]


def project_spectral_norm(
    bound: ScalarOrSchedule,
    *,
    norm: Literal["power", "upper_bound"] = "power",
    key: jax.Array | None = None,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Bounds spectral norms: W ← W / max(1, σ(A)/bound) after every step.

    With ``norm="upper_bound"``, this is guaranteed: after ``optax.apply_updates(params, updates)``,
    every chosen kernel, as it is stored in its dtype, has σ(A) ≤ ``bound``, in bfloat16 and float16
    as well. The bound is computed for the rounded kernel, and the kernel is rescaled until that
    bound is met. With ``norm="power"``, it holds approximately.

    A stack of layers (:class:`Stacked`) is bounded and rescaled layer by layer.

    Args:
      bound: the largest norm, > 0, a number or a schedule.
      norm: how σ(A) is computed. "power" does one power iteration per step, and 50 more in the
        first step. It is cheap, but it approaches σ from below, so a norm may slightly exceed the
        bound until the iteration has caught up. "upper_bound" uses
        :func:`spectral_norm_upper_bound`, which guarantees the bound after every step, but shrinks
        the kernels of strided convolutions more than necessary. For a dense kernel, its cost is of
        the order of out³, independent of the batch size. It is paid once per step, and about twice
        if the kernel has to be rescaled. ``flatreg.every(…, 10)`` projects only on every tenth
        step, which reduces the cost to a tenth.
      key: the random key for the start of the power iteration. If None, ``jax.random.key(0)``.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)``, which
        raises an error if a kernel does not have one. If None, the leaves called ``kernel`` are
        bounded as dense kernels, and a kernel that does not have two axes raises an error.
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves. To bound several groups of layers
        differently, chain several projections.

    Returns:
      A gradient transformation, to be put last in the chain, whose state is a :class:`PowerState`.

    Raises:
      ValueError: if the bound is not positive, or if ``norm`` is neither "power" nor "upper_bound";
        in ``init``, if no kernel is found, or if it is not clear what a kernel does.

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

    def power(chosen: Kernels, state: PowerState) -> tuple[NormFns, PowerState]:
        return advance(chosen, operators, state)

    def upper_bound(chosen: Kernels, state: PowerState) -> tuple[NormFns, PowerState]:
        def norm_fn(linear_map: LinearMap) -> NormFn:
            return lambda kernel: per_layer(spectral_norm_upper_bound, kernel, linear_map)

        norms = {path: norm_fn(linear_map_of(path, operators)) for path in chosen}
        return norms, state._replace(count=increment(state.count))

    norms_of = power if norm == "power" else upper_bound
    rescale = _rescaled_once if norm == "power" else _rescaled_until_inside
    return _projection("project_spectral_norm", bound, init, norms_of, rescale, operators, where)


def project_norm(
    ord: float,
    bound: ScalarOrSchedule,
    *,
    operators: Operators | None = None,
    where: Where | None = None,
) -> optax.GradientTransformation:
    r"""Bounds induced norms: W ← W / max(1, ‖W‖ₚ/bound) after every step, with p = 1 or ∞.

    ‖W‖ₚ is the norm from ℓₚ to ℓₚ, :func:`induced_norm`, of a dense kernel. As in the paper, the
    whole kernel is rescaled. The bound is guaranteed for the kernels after ``optax.apply_updates``,
    as they are stored in their dtype.

    Args:
      ord: p, either 1 or ``jnp.inf``. For 2, use :func:`project_spectral_norm`.
      bound: the largest norm, > 0, a number or a schedule.
      operators: the linear map of each kernel, as returned by ``linear_maps(f, params, x)``. All
        chosen ones must be dense, or stacks of dense layers. If None, the leaves called ``kernel``
        are bounded as dense kernels (in, out).
      where: a predicate on the path of a leaf. With ``operators``, it selects some of their
        kernels. Without, it selects the kernels among all leaves. It must exclude the kernels of
        convolutions.

    Returns:
      A gradient transformation, to be put last in the chain.

    Raises:
      ValueError: if the bound is not positive; in ``init``, if ``ord`` is neither 1 nor
        ``jnp.inf``, if no kernel is found, or if a chosen kernel is not dense.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), lipschitz.project_norm(1, 3.5))
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> kernel = optax.apply_updates(params, updates)["kernel"]
      >>> print(f"{lipschitz.induced_norm(kernel, 1):.3f}")
      3.500

    References:
      Gouk, Frank, Pfahringer and Cree, `Regularisation of Neural Networks by Enforcing Lipschitz
      Continuity <https://arxiv.org/abs/1804.04368>`_, 2021.
    """
    name = "project_norm"

    def norm_fn(path: str) -> NormFn:
        def of_layer(kernel: jax.Array, linear_map: LayerMap) -> jax.Array:
            if not isinstance(linear_map, Dense):
                raise ValueError(
                    f"{name} takes a dense kernel, but {path} is used in {linear_map}: leave it "
                    f"out with where=lambda path: path != {path!r}."
                )
            matrix = linear_map.matrix(float_kernel(kernel))
            # Covers the rounding errors of a sum.
            rounding = 1 + max(matrix.shape) * float(finfo(matrix.dtype).eps)
            return rounding * induced_norm(matrix, ord)

        return lambda kernel: per_layer(of_layer, kernel, linear_map_of(path, operators))

    def norms_of(chosen: Kernels, state: PowerState) -> tuple[NormFns, PowerState]:
        norms = {path: norm_fn(path) for path in chosen}
        return norms, state._replace(count=increment(state.count))

    def init(chosen: Kernels) -> PowerState:
        for path, kernel in chosen.items():
            jax.eval_shape(norm_fn(path), kernel)  # checks ord and the map; reads no values
        return _counter()

    return _projection(name, bound, init, norms_of, _rescaled_until_inside, operators, where)


def _counter() -> PowerState:
    """Returns a state that only counts steps."""
    return PowerState(jnp.zeros((), jnp.int32), {}, {})


class _Kernel(NamedTuple):
    """A kernel before and after the step of the optimizer, and its norm.

    Attributes:
      before: the parameter.
      update: the update of the optimizer.
      norm: the norm as a function of the kernel, with one value per layer of a stack.
      shaped: shapes one factor per layer such that the factors multiply the kernel.
    """

    before: jax.Array
    update: jax.Array
    norm: NormFn
    shaped: Callable[[jax.Array], jax.Array]

    def rescaled(self, factor: jax.Array) -> jax.Array:
        """Returns the update that leads to ``factor`` times the kernel after the step."""
        before = float_kernel(self.before)
        ahead = before + float_kernel(self.update)
        return representable(self.shaped(factor) * ahead - before, self.update.dtype)


Rescale: TypeAlias = Callable[[_Kernel, jax.Array], jax.Array]
"""``rescale(kernel, bound)`` returns the update of a kernel within the bound."""


def _rescaled_once(kernel: _Kernel, bound: jax.Array) -> jax.Array:
    """Returns the update for W/max(1, ‖W‖/bound), apart from rounding."""
    norm = kernel.norm(applied(kernel.before, kernel.update))
    above = norm > bound
    factor = bound / jnp.where(above, norm, 1)
    return jnp.where(kernel.shaped(above), kernel.rescaled(factor), kernel.update)


class _Attempt(NamedTuple):
    """A rescaled update.

    Attributes:
      number: the number of attempts before this one.
      factor: the factor of every layer.
      update: the update.
      inside: whether the norms of the layers are within the bound after this update. It is known
        only after the norms of this update have been computed.
    """

    number: jax.Array
    factor: jax.Array
    update: jax.Array
    inside: jax.Array


def _rescaled_until_inside(kernel: _Kernel, bound: jax.Array) -> jax.Array:
    """Returns an update after which the rounded kernel is within the bound.

    Each attempt multiplies the factor by bound / ‖rounded kernel‖ and by 1 − m, with a margin m
    that begins near the rounding error and doubles up to 1/2. The number of attempts is limited,
    and then the kernel becomes zero. This happens only if the norm was so far above the bound that
    the dtype of the updates cannot hold the difference, about 400 times in bfloat16.
    """
    dtypes = (kernel.before.dtype, kernel.update.dtype)
    eps = max(float(finfo(dtype).eps) for dtype in dtypes)
    attempts = 20 + max(int(finfo(dtype).nmant) for dtype in dtypes)

    def again(attempt: _Attempt) -> jax.Array:
        return ~jnp.all(attempt.inside) & (attempt.number < attempts)

    # The norm is computed for the update that the loop carries, not for an expression that XLA may
    # evaluate a second time with other rounding errors.
    def improve(attempt: _Attempt) -> _Attempt:
        norm = kernel.norm(applied(kernel.before, attempt.update))
        inside = ~(norm > bound)  # A norm that is NaN reaches the parameters.
        margin = jnp.minimum(eps / 8 * 2.0**attempt.number, 0.5).astype(norm.dtype)
        smaller = attempt.factor * (bound / jnp.where(inside, 1, norm)) * (1 - margin)
        factor = jnp.where(inside, attempt.factor, smaller).astype(norm.dtype)
        update = jnp.where(kernel.shaped(inside), attempt.update, kernel.rescaled(factor))
        return _Attempt(attempt.number + 1, factor, update, inside)

    norm = jax.eval_shape(kernel.norm, float_kernel(kernel.before))
    first = _Attempt(
        jnp.zeros((), jnp.int32),
        jnp.ones(norm.shape, norm.dtype),
        kernel.update,
        jnp.zeros(norm.shape, bool),
    )
    last = jax.lax.while_loop(again, improve, first)
    zero = -kernel.before.astype(kernel.update.dtype)
    return jnp.where(kernel.shaped(last.inside), last.update, zero)


def _projection(
    name: str,
    bound: ScalarOrSchedule,
    init_kernels: Callable[[Kernels], PowerState],
    norms_of: Callable[[Kernels, PowerState], tuple[NormFns, PowerState]],
    rescale: Rescale,
    operators: Operators | None,
    where: Where | None,
) -> optax.GradientTransformation:
    """Returns a transformation that rescales the kernels whose norm would exceed the bound.

    Args:
      name: the public function, for error messages.
      bound: the largest norm.
      init_kernels: returns the first state for the chosen kernels.
      norms_of: returns the norms of the chosen kernels as functions, and the next state.
      rescale: returns the update of a kernel.
      operators: the linear map of each kernel, or None.
      where: a predicate on the path of a leaf, or None.
    """
    check_scalars(bound=bound)
    check_nonnegative(bound=bound)
    if is_number(bound) and bound == 0:
        raise ValueError(f"{name} needs a positive bound, got {bound}: write bound=1.0.")

    def init(params: Params) -> PowerState:
        return init_kernels(choose_kernels(name, params, operators, where))

    def update(updates: Grads, state: Any, params: Any = None) -> tuple[Grads, Any]:
        chosen, changes = choose_kernels(name, params, operators, where), named_leaves(updates)
        ahead = {path: applied(kernel, changes[path]) for path, kernel in chosen.items()}
        largest = value_at(bound, state.count)
        norms, state = norms_of(ahead, state)

        def projected(path: str, u: jax.Array, w: jax.Array) -> jax.Array:
            if path not in norms:
                return u

            def factors(values: jax.Array) -> jax.Array:
                return shaped(values, w, linear_map_of(path, operators))

            return rescale(_Kernel(w, u, norms[path], factors), largest)

        return map_named(projected, updates, params), state

    return optax.GradientTransformation(init, with_standard_promotion(update))
