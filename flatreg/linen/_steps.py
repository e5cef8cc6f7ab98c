"""Train and evaluation steps of a short loss: ``make_train_step``, ``make_eval_step``."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax

from flatreg._core.oracle import value_and_grad_fn
from flatreg._core.tree import mix
from flatreg._flax.guard import (
    after_each,
    cross_entropy_and_accuracy,
    inputs_and_labels,
    loss_and_metrics,
    observed,
    spoiled_by,
)
from flatreg.linen._apply import Apply, explained
from flatreg.linen._state import TrainState
from flatreg.typing import Grads, Params

LossFn: TypeAlias = Callable[[Apply, Any, bool], Any]
"""``loss_fn(apply, batch, train) -> loss`` or ``(loss, metrics)``."""

Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars by name."""


def classification_loss(apply: Apply, batch: Any, train: bool) -> tuple[jax.Array, Metrics]:
    """The loss of a classifier: mean softmax cross-entropy, with the accuracy as a metric.

    Args:
      apply: a model that is called as ``model(x, train=train)`` and returns logits.
      batch: ``(x, labels)`` with integer labels.
      train: whether this is training.

    Returns:
      The loss, in at least float32, and ``{"accuracy": …}``.

    Raises:
      TypeError: if the model takes no ``train``, then write this function with your own call; if
        the batch is no such pair.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
      >>> from flatreg.linen import TrainState, classification_loss, make_train_step
      >>> class Classifier(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
      ...         return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(nn.tanh(x)))
      >>> batch = jax.random.normal(jax.random.key(1), (16, 4)), jnp.arange(16) % 3
      >>> tx = optax.chain(flatreg.sam(0.05), optax.adam(0.1))
      >>> state = TrainState.init(Classifier(), tx, jax.random.key(0), batch[0], train=False)
      >>> train_step = jax.jit(make_train_step(classification_loss), donate_argnums=0)
      >>> for _ in range(100):
      ...     state, metrics = train_step(state, batch)
      >>> print(bool(metrics["accuracy"] > 0.9))
      True
    """
    x, labels = inputs_and_labels(batch)
    return cross_entropy_and_accuracy(apply(x, train=train), labels)


def make_train_step(
    loss_fn: LossFn,
    *,
    rngs: str | Iterable[str] = ("dropout",),
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Makes ``step(state, batch) -> state, metrics``, a pure function for ``jax.jit``.

    One clean pass gives metrics, statistics and the gradient; the method in ``state.tx`` asks for
    further gradients of the same loss on the same batch with the same random keys. Under float16
    each pass runs with the loss times ``state.dynamic_scale.scale``, and its gradient is divided
    by it, in float32, before the method sees it. Links of the chain that want the loss
    (``optax.contrib.reduce_on_plateau``, ``optax.polyak_sgd``) get it, unscaled, as ``value``.

    Args:
      loss_fn: ``loss_fn(apply, batch, train) -> loss`` or ``(loss, metrics)`` with a scalar loss
        and a dict; see :class:`Apply`.
      rngs: the model's names for its random keys. Call c of ``apply`` in step t has the keys
        ``split(fold_in(fold_in(state.key, t), c), len(rngs))``, in this order.
      microbatches: as for :func:`flatreg.value_and_grad_fn`, and so are ``shards`` and
        ``ascent_fraction``. Microbatch or shard i folds i into the key of the step. Metrics and
        statistics are averaged over them if floating, else the last one's.
      shards: for :func:`flatreg.per_shard`.
      ascent_fraction: for a cheap ascent.

    Returns:
      The step. Its metrics are those of the loss, ``loss`` itself, ``skipped`` (whether this step
      was), and, if the chain holds :func:`flatreg.observe`, ``grad_norm``, ``direction_norm``,
      ``perturbation_norm`` and ``cosine`` of the last step that was not skipped. Donate the state:
      ``jax.jit(step, donate_argnums=0)``; and where parameters are sharded over Auto mesh axes,
      keep each leaf in its place by ``out_shardings=(jax.tree.map(lambda x: x.sharding, state),
      None)``.

    Raises:
      TypeError: if ``loss_fn`` does not take ``(apply, batch, train)``, or returns no scalar; if
        the step's first argument is no :class:`TrainState`.
      ValueError: if an option is out of range or the batch does not divide; if the loss is no
        scalar or does not use ``apply``; if a collection changes its structure.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
      >>> from flatreg.linen import TrainState, make_train_step
      >>> def loss_fn(apply, batch, train):
      ...     x, y = batch
      ...     error = apply(x)[:, 0] - y
      ...     return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}
      >>> tx = optax.chain(flatreg.observe(flatreg.sam(0.05)), optax.sgd(0.1))
      >>> batch = jnp.ones((8, 2)), jnp.zeros(8)
      >>> state = TrainState.init(nn.Dense(1), tx, jax.random.key(0), batch[0])
      >>> train_step = jax.jit(make_train_step(loss_fn, microbatches=2), donate_argnums=0)
      >>> state, metrics = train_step(state, batch)
      >>> print(state.step, sorted(metrics))
      1 ['cosine', 'direction_norm', 'grad_norm', 'largest', 'loss', 'perturbation_norm', 'skipped']
    """
    _check_loss(loss_fn)
    names = (rngs,) if isinstance(rngs, str) else tuple(rngs)

    def scaled_loss(params: Params, batch: Any, key: jax.Array, state: TrainState) -> Any:
        variables = state.replace(params=params).variables
        rngs = () if state.key is None else names
        apply = Apply(state.apply_fn, variables, key if rngs else None, rngs, train=True)
        loss, metrics = _evaluate(loss_fn, apply, batch, train=True)
        scale = 1 if state.dynamic_scale is None else state.dynamic_scale.scale
        return loss * scale, (metrics, apply.collections)

    evaluate = value_and_grad_fn(
        scaled_loss,
        has_aux=True,
        batch_argnums=1,
        key_argnums=2,
        microbatches=microbatches,
        shards=shards,
        ascent_fraction=ascent_fraction,
    )

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        _check_state(state, "state, metrics = train_step(state, batch)")
        key = jax.random.key(0) if state.key is None else state.key  # then nobody draws from it
        key = jax.random.fold_in(key, state.step)
        with explained(train=True):
            (_, (metrics, collections)), grads, grad_fn = evaluate(state.params, batch, key, state)
        if state.dynamic_scale is not None:
            scale = state.dynamic_scale.scale

            def unscale(grads: Grads) -> Grads:
                return mix((1 / scale, grads))  # in float32

            grads, grad_fn = unscale(grads), after_each(unscale, grad_fn)
        new = state.apply_gradients(
            grads=grads,
            grad_fn=spoiled_by(metrics["loss"], grad_fn),
            value=metrics["loss"],
            batch_stats=collections.pop("batch_stats", state.batch_stats),
            collections=collections,
        )
        metrics |= {"skipped": new.skipped != state.skipped, **observed(new.opt_state)}
        return new, metrics

    return step


def make_eval_step(loss_fn: LossFn) -> Callable[[TrainState, Any], Metrics]:
    """Makes ``step(state, batch) -> metrics``, a pure function for ``jax.jit``.

    The loss is called with ``train=False``; no collection is mutable and there are no random keys.
    To evaluate averaged parameters write ``step(state.replace(params=average), batch)``.

    Args:
      loss_fn: as for :func:`make_train_step`.

    Returns:
      The step, whose metrics are those of the loss and ``loss`` itself.

    Raises:
      TypeError: if ``loss_fn`` does not take ``(apply, batch, train)``, or returns no scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax
      >>> from flatreg.linen import TrainState, make_eval_step
      >>> loss_fn = lambda apply, x, train: jnp.mean(apply(x) ** 2)
      >>> state = TrainState.init(nn.Dense(1), optax.sgd(0.1), jax.random.key(0), jnp.ones((4, 2)))
      >>> print(jax.jit(make_eval_step(loss_fn))(state, jnp.zeros((4, 2))))
      {'loss': Array(0., dtype=float32)}
    """
    _check_loss(loss_fn)

    def step(state: TrainState, batch: Any) -> Metrics:
        _check_state(state, "metrics = eval_step(state, batch)")
        apply = Apply(state.apply_fn, state.variables, train=False)
        with explained(train=False):
            return _evaluate(loss_fn, apply, batch, train=False)[1]

    return step


def _evaluate(
    loss_fn: LossFn, apply: Apply, batch: Any, *, train: bool
) -> tuple[jax.Array, Metrics]:
    """The loss, and its metrics with the loss among them."""
    loss, metrics = loss_and_metrics(loss_fn(apply, batch, train))
    if not apply.used:
        raise ValueError(
            "loss_fn never called apply, so its loss does not depend on the parameters: write "
            "logits = apply(x, train=train) instead of calling the model itself."
        )
    return loss, metrics


def _check_state(state: Any, call: str) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            "a step takes (state, batch) with a flatreg.linen.TrainState, but its first argument "
            f"is a {type(state).__module__}.{type(state).__name__}: write state = "
            f"TrainState.init(model, tx, key, x) and {call}."
        )


def _check_loss(loss_fn: LossFn) -> None:
    mend = "def loss_fn(apply, batch, train): … return loss, or loss and a dict of metrics."
    try:
        inspect.signature(loss_fn).bind(None, None, True)
    except TypeError as error:
        raise TypeError(
            f"loss_fn must take (apply, batch, train), but {loss_fn!r} does not ({error}): write "
            f"{mend}"
        ) from None
