"""Finite or not at all: what a training step does around ``tx.update``.

A step in which any pass, clean or shifted, gave the method a NaN or Inf must leave everything as it
was. The perturbed passes run inside of the method, perhaps inside of a ``cond`` or ``vmap``, so no
flag can be handed out of them. Instead every Inf of a gradient becomes NaN, which no later link
clips away, and shows in the updates, in the sum of an accumulator, or in the word of a link that
leaves such steps out (``optax.apply_if_finite``); only links whose purpose it is to hide numbers
(``optax.zero_nans``, a mask that freezes weights) hide NaN here too. The clean gradient is looked
at in no other way, so XLA drops its backward pass where the method has no use for it, and nothing
is stored for the test: NaN comes with each number.

The new optimizer state is whole before the test is done, and the old one must still be there then:
with AdamW two copies of the parameters more than without a test. A ``cond`` in place of the
``where`` takes three.

Beside that, this file holds what both of Flax's faces ask of a loss and of a chain.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg._core.batches import ShardedGradFn
from flatreg._core.directions import DirectionState, holds_optimizer
from flatreg._core.observe import Observation, ObservedState
from flatreg.typing import GradFn, Grads, Params

_CHAIN = "optax.chain(flatreg.sam(rho=0.05), optax.sgd(0.1))"


class Guarded(NamedTuple):
    """What :func:`guarded_update` returns.

    Attributes:
      params: the new parameters, or the old ones after a step that was not finite.
      opt_state: the new optimizer state, or the old one.
      finite: whether all was finite that the step took from its passes, a boolean scalar.
    """

    params: Params
    opt_state: optax.OptState
    finite: jax.Array


def guarded_update(
    tx: optax.GradientTransformation,
    grads: Grads,
    opt_state: optax.OptState,
    params: Params,
    grad_fn: GradFn | None = None,
    value: jax.Array | None = None,
) -> Guarded:
    """One step of ``tx``, skipped as a whole where what it takes from a pass is not finite."""
    tx = optax.with_extra_args_support(tx)
    extra: dict[str, Any] = {} if value is None else {"value": value}
    if grad_fn is not None:
        extra["grad_fn"] = after_each(_finite_or_nan, grad_fn)
    updates, new_opt_state = tx.update(_finite_or_nan(grads), opt_state, params, **extra)
    finite = all_finite((updates, _accumulated(new_opt_state))) & ~_skipped(new_opt_state)
    new_params = optax.apply_updates(params, updates)
    keep = functools.partial(optax.tree.where, finite)
    return Guarded(keep(new_params, params), keep(new_opt_state, opt_state), finite)


def adjusted_scale(dynamic_scale: Any, finite: jax.Array) -> Any:
    """Flax's ``DynamicScale`` after a step: its own rule, applied once and to all passes together.

    The scale grows after ``growth_interval`` finite steps and backs off at once when one is not.
    """
    scale = jnp.asarray(dynamic_scale.scale, jnp.float32)
    fin_steps = jnp.asarray(dynamic_scale.fin_steps, jnp.int32)
    grow = fin_steps == dynamic_scale.growth_interval
    grown = jnp.minimum(scale * dynamic_scale.growth_factor, np.finfo(np.float32).max)
    reduced = scale * dynamic_scale.backoff_factor
    if dynamic_scale.minimum_scale is not None:
        reduced = jnp.maximum(reduced, dynamic_scale.minimum_scale)
    return dynamic_scale.replace(
        scale=jnp.where(finite, jnp.where(grow, grown, scale), reduced),
        fin_steps=jnp.where(grow | ~finite, 0, fin_steps + 1),
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point leaves are finite, a boolean scalar."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    # 0·x is NaN for NaN and Inf. XLA sums numbers faster than it compares them.
    return jnp.all(jnp.stack([jnp.sum(0 * x) == 0 for x in leaves] or [jnp.array(True)]))


def after_each(function: Any, grad_fn: GradFn, before: Any = lambda params: params) -> GradFn:
    """The oracle ``function ∘ grad_fn ∘ before``, on every shard if there are shards."""
    if isinstance(grad_fn, ShardedGradFn):
        return ShardedGradFn(
            shards=grad_fn.shards,
            grads=jax.vmap(function)(grad_fn.grads),
            on_shard=lambda shard: after_each(function, grad_fn.on_shard(shard), before),
        )
    return lambda params: function(grad_fn(before(params)))


def spoiled_by(loss: jax.Array, grad_fn: GradFn) -> GradFn:
    """The oracle; NaN if the clean loss is not finite, so that it shows without its gradient."""
    factor = 1 + 0 * loss
    return after_each(lambda g: jax.tree.map(lambda x: x * factor.astype(x.dtype), g), grad_fn)


def observed(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """What :func:`flatreg.observe` saw in the last update, by name; empty without it."""
    found = _nodes(Observation, opt_state)
    if len(found) > 1:
        raise ValueError(
            f"tx observes {len(found)} methods, and the metrics hold one observation: observe them "
            "together, flatreg.observe(flatreg.combine(flatreg.sam(0.05), flatreg.gam(0.1, 1.0)))."
        )
    return found[0]._asdict() if found else {}


def loss_and_metrics(out: Any) -> tuple[jax.Array, dict[str, Any]]:
    """What a loss has returned, ``loss`` or ``(loss, metrics)``; the metrics hold the loss too."""
    loss, metrics = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"loss_fn must return loss or (loss, metrics) with a dict of metrics, got {out!r}: "
            'write return loss, {"accuracy": accuracy}.'
        )
    if not hasattr(loss, "shape") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            "loss_fn must return a floating-point scalar, or a pair of it and a dict of metrics, "
            f'got {out!r}: write return loss, or return loss, {{"accuracy": accuracy}}.'
        )
    if loss.shape:
        raise ValueError(
            f"loss_fn must return a scalar, got an array of shape {loss.shape}: take the mean over "
            "the examples, return loss.mean()."
        )
    return loss, {**metrics, "loss": loss}


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """The two parts of a classifier's batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        keys = f" with the keys {list(batch)}" if isinstance(batch, Mapping) else ""
        raise TypeError(
            f"classification_loss takes batch = (x, labels), got a {type(batch).__name__}{keys}: "
            'hand the step (batch["image"], batch["label"]), say, or write a loss of your own.'
        )
    return batch[0], batch[1]


def cross_entropy_and_accuracy(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A classifier's loss, in at least float32, and its metrics."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels)}


def check_transformation(tx: Any) -> None:
    """``tx`` is an Optax transformation."""
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}: write {_CHAIN}.")


def check_order(opt_state: optax.OptState) -> None:
    """An optimizer comes behind the method, and no accumulation around it."""
    links = _links(opt_state)
    if links and isinstance(links[-1], DirectionState | ObservedState):
        raise ValueError(
            "tx ends in a method, whose output is a gradient: adding it to the parameters would "
            f"climb. Put the optimizer behind the method: {_CHAIN}."
        )
    optimizers = [i for i, link in enumerate(links) if holds_optimizer(link)]
    if optimizers and _methods(links[optimizers[0] + 1 :]):
        raise ValueError(
            "tx has an optimizer before a method, which would replace its updates by a gradient. "
            f"Put the optimizer behind the method: {_CHAIN}."
        )
    if any(map(_methods, _nodes(optax.MultiStepsState, opt_state))):
        raise ValueError(
            "optax.MultiSteps hands its averaged gradient to a method that has the oracle of the "
            "last microbatch only. Take it away and write make_train_step(loss_fn, microbatches=k)."
        )


def _nodes(kind: Any, tree: Any) -> list[Any]:
    """The nodes of one type in a tree, uppermost first."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in leaves if isinstance(x, kind)]


def _methods(opt_state: optax.OptState) -> list[Any]:
    return _nodes(DirectionState | ObservedState, opt_state)


def _links(opt_state: optax.OptState) -> list[optax.OptState]:
    """The states of a chain's links, inside of ``every``, ``inject_hyperparams``, …."""
    if isinstance(opt_state, dict):  # of optax.named_chain
        opt_state = tuple(opt_state.values())
    if type(opt_state) is tuple:
        return [link for part in opt_state for link in _links(part)]
    inner = getattr(opt_state, "inner_state", None)
    return [opt_state] if inner is None else _links(inner)


def _accumulated(opt_state: optax.OptState) -> list[Any]:
    """What links that hold gradients back for later steps have summed up so far."""
    return [x.acc_grads for x in _nodes(optax.MultiStepsState, opt_state)] + [
        x.grad_acc for x in _nodes(optax.ApplyEvery, opt_state)
    ]


def _skipped(opt_state: optax.OptState) -> jax.Array:
    """Whether a link has met numbers that are not finite, and left its step out."""
    skipped = [~x.last_finite for x in _nodes(optax.ApplyIfFiniteState, opt_state)]
    skipped += [
        x.skip_state["should_skip"]
        for x in _nodes(optax.MultiStepsState, opt_state)
        if isinstance(x.skip_state, Mapping) and "should_skip" in x.skip_state
    ]
    return jnp.any(jnp.stack([jnp.any(x) for x in skipped] or [jnp.array(False)]))


def _finite_or_nan(grads: Grads) -> Grads:
    # A product, not a `where`: its tangent is NaN as well, and so are Hessian-vector products.
    return jax.tree.map(lambda g: g * (1 + 0 * g), grads)
