"""Train and evaluation steps of a short loss: ``make_train_step``, ``make_eval_step``."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flatreg._core.batches import leading_axis
from flatreg._core.oracle import value_and_grad_fn
from flatreg._flax.guard import (
    adjusted_scale,
    after_each,
    check_order,
    cross_entropy_and_accuracy,
    guarded_update,
    inputs_and_labels,
    loss_and_metrics,
    observed,
    spoiled_by,
)
from flatreg.nnx._optimizer import Optimizer
from flatreg.nnx._variables import GRAPH, as_pure, changed, changes_of, copied, folded, splitter
from flatreg.typing import Params

LossFn: TypeAlias = Callable[[Any, Any], Any]
"""``loss_fn(model, batch) -> loss`` or ``(loss, metrics)``."""

Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars by name."""


def classification_loss(model: Any, batch: Any) -> tuple[jax.Array, Metrics]:
    """The loss of a classifier: mean softmax cross-entropy, with the accuracy as a metric.

    Args:
      model: a model that is called as ``model(x)`` and returns logits.
      batch: ``(x, labels)`` with integer labels.

    Returns:
      The loss, in at least float32, and ``{"accuracy": …}``.

    Raises:
      TypeError: if the batch is no such pair.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss, metrics = classification_loss(lambda x: x, (4 * jnp.eye(3), jnp.arange(3)))
      >>> print(f"{loss:.3f} {metrics['accuracy']}")
      0.036 1.0
    """
    x, labels = inputs_and_labels(batch)
    return cross_entropy_and_accuracy(model(x), labels)


def make_train_step(
    loss_fn: LossFn,
    *,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
) -> Callable[[Any, nnx.Optimizer[Any], Any], Metrics]:
    """Makes ``step(model, optimizer, batch) -> metrics``, which updates both in place.

    One clean pass gives metrics, the new state of the model and the gradient; the method in
    ``optimizer.tx`` asks for further gradients of the same loss on the same batch with the same
    random keys. A step whose method uses a gradient that is not finite is skipped whole: of the
    model only ``RngCount`` goes on, so that the next step draws other masks, and of the optimizer
    ``step``, ``skipped`` and ``dynamic_scale``. Under a loss scale each pass runs with the scaled
    loss, and its gradient is unscaled, in float32, before the method sees it. Links of the chain
    that want the loss (``optax.contrib.reduce_on_plateau``, ``optax.polyak_sgd``) get it, unscaled,
    as ``value``.

    Args:
      loss_fn: ``loss_fn(model, batch) -> loss`` or ``(loss, metrics)`` with a scalar loss and a
        dict. It may change the model's Variables, but neither make nor remove any.
      microbatches: as for :func:`flatreg.value_and_grad_fn`, and so are ``shards`` and
        ``ascent_fraction``. A microbatch or shard folds the number of its first example (i for
        microbatch i) into every ``RngKey``. Metrics and Variables are averaged over them if
        floating, else the last one's.
      shards: for :func:`flatreg.per_shard`.
      ascent_fraction: for a cheap ascent.

    Returns:
      The step, for ``nnx.jit``. ``optimizer`` is an :class:`Optimizer` or any ``nnx.Optimizer``,
      which does not count skipped steps. The metrics are those of the loss, ``loss`` itself,
      ``skipped`` (whether this step was), and, if the chain holds :func:`flatreg.observe`,
      ``grad_norm``, ``direction_norm``, ``perturbation_norm`` and ``cosine`` of the last step that
      was not skipped.

    Raises:
      TypeError: if the optimizer is none, or the loss returns no scalar.
      ValueError: if an option is out of range or the batch does not divide; if the loss is no
        scalar, or makes Variables; if ``wrt`` picks nothing; if ``tx`` ends in a method.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> from flax import nnx
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
      ...     nnx.BatchNorm(8, rngs=nnx.Rngs(1)),
      ...     nnx.Dropout(0.1, rngs=nnx.Rngs(2)),
      ...     nnx.Linear(8, 2, rngs=nnx.Rngs(3)),
      ... )
      >>> tx = optax.chain(flatreg.observe(flatreg.sam(0.05)), optax.adam(0.1))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> x = jax.random.normal(jax.random.key(4), (16, 4))
      >>> batch = x, (x[:, 0] > 0).astype(int)
      >>> train_step = nnx.jit(make_train_step(classification_loss), donate_argnums=(0, 1))
      >>> for _ in range(30):
      ...     metrics = train_step(model, optimizer, batch)
      >>> print(sorted(metrics))
      ['accuracy', 'cosine', 'direction_norm', 'grad_norm', 'loss', 'perturbation_norm', 'skipped']
      >>> model.eval()
      >>> print(nnx.jit(make_eval_step(classification_loss))(model, batch)["accuracy"])
      1.0
    """
    with_oracle = functools.partial(
        value_and_grad_fn,
        has_aux=True,
        batch_argnums=(1, 2),
        microbatches=microbatches,
        shards=shards,
        ascent_fraction=ascent_fraction,
    )
    with_oracle(loss_fn)  # checks the options

    def step(model: Any, optimizer: nnx.Optimizer[Any], batch: Any) -> Metrics:
        split = splitter(optimizer)
        graphdef, params, streams, others, arrays = split(model)
        params, opt_state = as_pure((params, optimizer.opt_state))
        check_order(opt_state)
        dynamic_scale = as_pure(getattr(optimizer, "dynamic_scale", None))
        scale = 1 if dynamic_scale is None else dynamic_scale.scale
        numbers = None
        if (parts := microbatches * (shards or 1)) > 1:
            numbers = jnp.arange(leading_axis(batch, parts))

        def loss(params: Params, batch: Any, numbers: Any) -> Any:
            """The scaled loss as a pure function; aux is the metrics and what has changed."""
            before = folded(streams, numbers), others
            own = nnx.merge(graphdef, params, *copied(before), arrays)
            value, metrics = loss_and_metrics(loss_fn(own, batch))
            return value * scale, (metrics, [*map(changes_of, before, split(own)[2:4])])

        (_, (metrics, changes)), grads, grad_fn = with_oracle(loss)(params, batch, numbers)
        if dynamic_scale is not None:
            unscale = functools.partial(optax.tree.scale, 1 / scale)
            grads, grad_fn = unscale(grads), after_each(unscale, grad_fn)
        grad_fn = spoiled_by(metrics["loss"], grad_fn)
        params, opt_state, finite = guarded_update(
            optimizer.tx, grads, opt_state, params, grad_fn, metrics["loss"]
        )
        streams = changed(streams, changes[0], True)
        others = changed(others, changes[1], finite)
        nnx.update(model, params, streams, others)
        nnx.update(optimizer.opt_state, nnx.state(opt_state, **GRAPH))
        optimizer.step[...] += 1
        if isinstance(optimizer, Optimizer):
            optimizer.skipped[...] += ~finite
            if dynamic_scale is not None:
                adjusted = adjusted_scale(dynamic_scale, finite)
                nnx.update(optimizer.dynamic_scale, nnx.state(adjusted, **GRAPH))
        return {**metrics, "skipped": ~finite, **observed(opt_state)}

    return step


def make_eval_step(loss_fn: LossFn) -> Callable[[Any, Any], Metrics]:
    """Makes ``step(model, batch) -> metrics``, which leaves the model as it is.

    The loss runs on a copy, in the mode that the model is in: call ``model.eval()`` before, so that
    BatchNorm uses its statistics and dropout is off, and ``model.train()`` afterwards.

    Args:
      loss_fn: as for :func:`make_train_step`.

    Returns:
      The step, for ``nnx.jit``; its metrics are those of the loss and ``loss`` itself.

    Raises:
      TypeError: if the loss returns no number.
      ValueError: if the loss is no scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> eval_step = nnx.jit(make_eval_step(lambda model, x: jnp.mean(model(x))))
      >>> print(eval_step(model, jnp.ones((4, 2)))["loss"], model.mean[...])
      0.0 [0. 0.]
    """

    def step(model: Any, batch: Any) -> Metrics:
        graphdef, state = nnx.split(model, **GRAPH)
        return loss_and_metrics(loss_fn(nnx.merge(graphdef, copied(state)), batch))[1]

    return step
