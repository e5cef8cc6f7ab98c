r"""The linear stability of an optimizer, which is found in a chain by its state.

Near a minimum with Hessian H, an optimizer with learning rate η, momentum β, preconditioner P and
decoupled weight decay ω is a linear iteration. With c = 1 for momentum that sums gradients, and
c = 1 − β for momentum that averages them (Adam), it is

    m ← βm + c∇L(θ),    θ ← θ − η(P⁻¹m + ωθ).

In the coordinates P^{1/2}θ, it splits into one iteration for each eigenvalue λ of the matrix
P^{-1/2}HP^{-1/2}. A root of the iteration crosses −1 where λ reaches (1+β)(2/η − ω)/c. With
Nesterov's momentum, βm + c∇L(θ) takes the place of m in the step, and the threshold is divided by
1 + 2β.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import is_number
from flatreg._core.directions import DirectionState, holds_optimizer
from flatreg._core.observe import ObservedState
from flatreg._core.tree import widened
from flatreg.measures.checks import check_numbers
from flatreg.typing import Params, Scalar

# The types of states are compared by name, because not all of them are public in Optax.
_ADAM = ("ScaleByAdamState",)
_RMSPROP = ("ScaleByRmsState", "ScaleByRmsWithCountState")
_MOMENTUM = ("TraceState",)
# States with scalars of their own, which look like moments if the parameters are one scalar.
_WITHOUT_MOMENTS = ("ReduceLROnPlateauState", "RevisitState", "WhenSharpState")


class Hyperparameters(NamedTuple):
    """The numbers of an optimizer that its state does not contain. None stands for the default.

    Attributes:
      learning_rate: η.
      momentum: β of SGD or RMSProp.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: ω, the decoupled weight decay.
      b1: β of Adam.
      b2: the decay of the second moments.
      eps: the number that is added to the square root of the second moments.
      eps_root: the number that is added inside the square root.
    """

    learning_rate: Scalar
    momentum: Scalar | None = None
    nesterov: bool = False
    weight_decay: Scalar | None = None
    b1: Scalar | None = None
    b2: Scalar | None = None
    eps: Scalar | None = None
    eps_root: Scalar | None = None


class LinearOptimizer(NamedTuple):
    """The optimizer as a linear iteration.

    Attributes:
      factors: P^{-1/2}, a tree like the parameters, or None if P = 1.
      threshold: the eigenvalue of P^{-1/2}HP^{-1/2} above which the iteration diverges.
    """

    factors: Params | None
    threshold: jax.Array


class _Found(NamedTuple):
    """The state of an optimizer, and the numbers that ``optax.inject_hyperparams`` keeps for it."""

    state: Any
    hyperparams: dict[str, Any]

    @property
    def kind(self) -> str:
        return type(self.state).__name__


def linear_optimizer(
    opt_state: optax.OptState | None, params: Params, given: Hyperparameters
) -> LinearOptimizer:
    """Finds the optimizer in a chain by its state.

    Raises:
      TypeError: if a hyperparameter is not a number.
      ValueError: if no threshold is known for the optimizer, or if its momentum is not known.
    """
    _check(given)
    found = list(_optimizers(opt_state, params, {}))
    for kind in (optimizer.kind for optimizer in found):
        if kind not in (*_ADAM, *_RMSPROP, *_MOMENTUM):
            raise ValueError(
                f"stability knows no threshold for an optimizer with the state {kind}. It knows "
                "those of SGD, momentum, Nesterov's momentum, RMSProp, Adam and AdamW. If this is "
                "the state of a wrapper around one of them, pass only the inner state as "
                "opt_state. To measure λ_max alone, write measures.top_eigenpairs(loss_fn, params, "
                "key)."
            )
    adaptive = [optimizer for optimizer in found if optimizer.kind not in _MOMENTUM]
    buffers = [optimizer for optimizer in found if optimizer.kind in _MOMENTUM]
    if max(len(adaptive), len(buffers)) > 1:
        raise ValueError(
            "opt_state holds several optimizers, but stability describes one with one learning "
            "rate. Measure the weights of each optimizer separately: write loss, leaves = "
            "measures.restrict(loss_fn, params, where), and then measures.stability(loss, leaves, "
            "key, learning_rate=…, opt_state=…) with a state for these leaves."
        )
    injected = {name: x for optimizer in found for name, x in optimizer.hyperparams.items()}
    is_adam = bool(adaptive) and adaptive[0].kind in _ADAM
    momentum = _momentum(given, injected, bool(found), bool(buffers), is_adam)
    decay = _first(given.weight_decay, injected.get("weight_decay"), 0.0)
    share = 1 - momentum if is_adam else 1.0
    lookahead = 1 + 2 * momentum if given.nesterov else 1.0
    threshold = (1 + momentum) * (2 / given.learning_rate - decay) / (share * lookahead)
    return LinearOptimizer(
        factors=_factors(adaptive[0], params, given) if adaptive else None,
        threshold=jnp.asarray(threshold, jnp.result_type(float)),
    )


def _check(given: Hyperparameters) -> None:
    numbers = {k: x for k, x in given._asdict().items() if x is not None and k != "nesterov"}
    if callable(given.learning_rate):
        raise TypeError(
            "learning_rate must be one number, got a schedule: write learning_rate=schedule(step)."
        )
    check_numbers(**numbers)
    if is_number(given.learning_rate) and not given.learning_rate > 0:
        raise ValueError(
            f"learning_rate must be greater than 0, got {given.learning_rate}: for example, write "
            "learning_rate=0.1."
        )
    for name in ("momentum", "b1", "b2"):
        value = numbers.get(name, 0)
        if is_number(value) and value >= 1:
            raise ValueError(f"{name} must be below 1, got {value}: for example, write {name}=0.9.")


def _momentum(
    given: Hyperparameters,
    injected: dict[str, Any],
    has_optimizer: bool,
    has_buffer: bool,
    is_adam: bool,
) -> Any:
    """β, after checking that it is known and that it agrees with the state."""
    momentum = _first(given.momentum, injected.get("momentum"))
    zero = momentum is None or (is_number(momentum) and momentum == 0)
    if is_adam:
        if has_buffer or not zero:
            raise ValueError(
                "stability knows no threshold for Adam with a second momentum: leave momentum out, "
                "and pass Adam's own momentum as b1."
            )
        return _first(given.b1, injected.get("b1"), 0.9)
    if has_buffer and momentum is None:
        raise ValueError(
            "opt_state has a momentum buffer (TraceState), which does not contain the coefficient: "
            "pass the momentum of the optimizer, for example momentum=0.9."
        )
    if has_optimizer and not has_buffer and not zero:
        raise ValueError(
            f"momentum is {momentum}, but opt_state contains no momentum buffer (TraceState): "
            "leave momentum out, or pass the state of the optimizer that has it."
        )
    return _first(momentum, 0.0)


def _optimizers(state: Any, params: Params, hyperparams: dict[str, Any]) -> Iterator[_Found]:
    """The states that determine how the step depends on the gradients.

    These are the states of Optax's optimizers, and all states that contain a tree with the shapes
    of the parameters, such as the moments of an optimizer from elsewhere.
    """
    if isinstance(state, DirectionState | ObservedState):  # of a method, which comes before
        return
    if isinstance(state, optax.MultiStepsState):  # which also contains the accumulated gradient
        yield from _optimizers(state.inner_opt_state, params, hyperparams)
    elif hasattr(state, "hyperparams"):  # of optax.inject_hyperparams
        values = {name: jax.tree.leaves(x)[0] for name, x in state.hyperparams.items()}
        yield from _optimizers(state.inner_state, params, {**hyperparams, **values})
    elif isinstance(state, Mapping):  # of optax.named_chain and optax.partition
        yield from _optimizers(tuple(state.values()), params, hyperparams)
    elif not isinstance(state, tuple | list):
        return
    elif hasattr(state, "_fields") and _is_optimizer(state, params):
        yield _Found(state, hyperparams)
    else:
        for part in state:
            yield from _optimizers(part, params, hyperparams)


def _is_optimizer(state: Any, params: Params) -> bool:
    if type(state).__name__ in (*_ADAM, *_RMSPROP, *_MOMENTUM):
        return True
    if type(state).__name__ in _WITHOUT_MOMENTS:
        return False
    if holds_optimizer(state) and not any(map(holds_optimizer, state)):
        return True
    return any(_shaped_like(part, params) for part in state)


def _shaped_like(tree: Any, params: Params) -> bool:
    """Whether the tree has floating-point leaves with the shapes of the parameters."""
    leaves, weights = _leaves_and_masked(tree), jax.tree.leaves(params)
    if len(leaves) != len(weights):
        return False
    pairs = [(x, w) for x, w in zip(leaves, weights, strict=True) if not _is_masked(x)]
    return bool(pairs) and all(
        jnp.shape(x) == jnp.shape(w) and jnp.issubdtype(jnp.result_type(x), jnp.floating)
        for x, w in pairs
    )


def _factors(found: _Found, params: Params, given: Hyperparameters) -> Params:
    """P^{-1/2} with P = √(v̂ + ε_root) + ε, or zero for leaves that ``optax.masked`` removed."""
    state, injected = found
    if found.kind in _ADAM:
        eps = _first(given.eps, injected.get("eps"), 1e-8)
        eps_root = _first(given.eps_root, injected.get("eps_root"), 0.0)
    else:  # Optax adds the eps of RMSProp inside the square root.
        eps = _first(given.eps, 0.0)
        eps_root = _first(given.eps_root, injected.get("eps"), 1e-8)
    correction = jnp.ones(())
    if "count" in state._fields:
        default = 0.999 if found.kind in _ADAM else 0.9
        b2 = _first(given.b2, injected.get("b2"), injected.get("decay"), default)
        count = jax.tree.leaves(state.count)[0]
        correction = jnp.where(count == 0, 1, 1 - jnp.asarray(b2, jnp.float32) ** count)
    weights, moments = jax.tree.leaves(widened(params)), _leaves_and_masked(state.nu)
    if not _shaped_like(state.nu, params):
        raise ValueError(
            "opt_state must be the state of the optimizer of params, but its second moments have "
            f"the shapes {[jnp.shape(x) for x in moments if not _is_masked(x)]} and params has "
            f"{[x.shape for x in weights]}: write opt_state=tx.init(params), updated by training."
        )

    def factor(moment: Any, weight: jax.Array) -> jax.Array:
        if _is_masked(moment):
            return jnp.zeros_like(weight)
        moment = jnp.asarray(moment).astype(weight.dtype) / correction.astype(weight.dtype)
        factor: jax.Array = 1 / jnp.sqrt(jnp.sqrt(moment + eps_root) + eps)
        return factor.astype(weight.dtype)

    factors = [factor(x, w) for x, w in zip(moments, weights, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), factors)


def _leaves_and_masked(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_masked)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
