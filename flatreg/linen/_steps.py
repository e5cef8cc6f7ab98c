"""Train and evaluation steps for Flax Linen: ``make_train_step`` and ``make_eval_step``."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax

from flatreg._core.devices import AxisName
from flatreg._core.functional import functional_value_and_grad_fn
from flatreg._core.oracle import value_and_grad_fn
from flatreg._flax import loss_scale
from flatreg._flax.classification_loss import cross_entropy_and_accuracy
from flatreg._flax.clean_pass import clean_pass
from flatreg._flax.functional import GivenOutputs, check_functional
from flatreg._flax.loss_arguments import (
    check_further_arguments,
    check_keys_are_named,
    further_argnums,
)
from flatreg._flax.metrics import LossOutput, Metrics, loss_and_metrics, step_metrics
from flatreg.linen._apply import Apply, flax_errors_explained
from flatreg.linen._state import TrainState, new_or_old
from flatreg.typing import Params


class LossFn(Protocol):
    """A loss function, ``loss_fn(apply, batch, train) -> loss`` or ``(loss, metrics)``.

    It may take further arguments, ``loss_fn(apply, batch, train, *args, **kwargs)``, which the step
    passes on.
    """

    def __call__(
        self, apply: Apply, batch: Any, train: bool, /, *args: Any, **kwargs: Any
    ) -> LossOutput:
        """Return the loss of a batch.

        Args:
          apply: the model with its variables filled in.
          batch: the batch that the step received.
          train: True in a train step, False in an evaluation step.
          *args: the positional arguments of the step after the batch.
          **kwargs: the keyword arguments of the step.

        Returns:
          The loss, a floating-point scalar, or a pair of the loss and a dict of metrics.
        """
        ...


def classification_loss(apply: Apply, batch: Any, train: bool) -> tuple[jax.Array, Metrics]:
    """The loss of a classifier: mean softmax cross-entropy, with the accuracy as a metric.

    Pass this function itself to :func:`make_train_step` and :func:`make_eval_step`.

    Args:
      apply: the model, which is called as ``apply(x, train=train)`` and returns logits of shape
        ``(examples, classes)``.
      batch: a pair ``(x, labels)`` of inputs and integer labels.
      train: whether the model runs in training mode.

    Returns:
      The loss, in at least float32, and ``{"accuracy": accuracy}``.

    Raises:
      TypeError: if the batch is not a pair, if the labels are not integers, or if the model does
        not take the argument ``train`` (write your own loss function in that case).
      ValueError: if there is not one label per example, for example because labels are one-hot.

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
    return cross_entropy_and_accuracy(lambda x: apply(x, train=train), batch)


def make_train_step(
    loss_fn: LossFn,
    *,
    rngs: str | Iterable[str] = ("dropout",),
    key_argnums: int | Sequence[int] | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
    axis_name: AxisName | None = None,
    forward_fn: Callable[..., Any] | None = None,
    skip_nonfinite: bool = True,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make a train step ``step(state, batch) -> state, metrics``, a pure function for ``jax.jit``.

    The step passes further arguments on to the loss: ``step(state, batch, *args, **kwargs)`` calls
    ``loss_fn(apply, batch, train, *args, **kwargs)``.

    A step has two phases:

    1. The clean pass evaluates the loss and its gradient at ``state.params``. It alone provides
       the metrics and the new BatchNorm statistics.
    2. The chain ``state.tx`` computes the update. The method in it requests further gradients of
       the same loss, on the same batch, with the same dropout masks.

    A step is skipped as a whole if a gradient that the chain uses contains a NaN or an infinity, in
    any pass. If the clean loss is not finite, all gradients that the method requests count as NaN.
    A skipped step keeps the old parameters, optimizer state, statistics and collections. It
    increases ``state.step`` and ``state.skipped`` by one and reduces the loss scale.

    With ``state.dynamic_scale`` (float16), every pass multiplies the loss by the scale and divides
    the gradient by it, in at least float32, before the method sees it. Transformations of the chain
    that use the loss (``optax.contrib.reduce_on_plateau``, ``optax.polyak_sgd``) receive the
    unscaled loss of the clean pass as ``value``.

    Args:
      loss_fn: ``loss_fn(apply, batch, train)`` returns ``loss`` or ``(loss, metrics)``: a
        floating-point scalar and a dict. ``apply`` is the model with its variables filled in
        (:class:`Apply`), ``batch`` is the batch that the step received, and ``train`` is True.
        Further arguments of the step follow, such as a random key or the weight of a penalty.
      rngs: the name or names of the model's random streams. In step t, call c of ``apply``, counted
        from 0, has the keys ``split(fold_in(fold_in(state.key, t), c), len(rngs))``, in the order
        of the names. Ignored if ``state.key`` is None.
      key_argnums: the numbers of the further arguments of ``loss_fn`` that are random keys; 3 for
        ``loss_fn(apply, batch, train, key)``. All passes of a step use the same key. Microbatch or
        shard i gets ``fold_in(key, i)``. Needed only with ``microbatches`` and ``shards``.
      microbatches: the number k ≥ 1 of microbatches. Every pass evaluates them one after another,
        with the memory of one. Microbatch i has the examples i, i+k, i+2k, …, and its random key is
        the key of the step with i folded in. Floating-point metrics and statistics are averaged
        over the microbatches; others come from the last one.
      shards: the number of contiguous parts of the batch that :func:`flatreg.per_shard` perturbs
        separately; None if the chain does not contain it. The random key of part i is the key of
        the step with i folded in. Floating-point metrics and statistics are averaged over the
        parts; others come from the last one.
      ascent_fraction: the fraction of the batch, in (0, 1], that the clean pass uses. Below 1, the
        clean pass uses only the first examples of the batch, which makes the step cheaper. Metrics
        and statistics then come from the perturbed pass, which uses the whole batch, so ``loss`` is
        the loss at the perturbed parameters. Use values below 1 only with :func:`flatreg.sam` and
        :func:`flatreg.asam`, for the reasons that :func:`flatreg.value_and_grad_fn` lists. If the
        chain calls the oracle only on some steps (:func:`flatreg.every`), metrics and statistics
        come from the first examples.
      axis_name: the axis of ``jax.pmap`` or ``jax.shard_map`` over which the batch is divided, or a
        tuple of such axes; None elsewhere, including ``jax.jit`` with sharded arrays. The loss, all
        gradients, and floating-point metrics and statistics are averaged over the devices; other
        metrics and statistics stay the device's own. The state must be the same on all devices. On
        device d, d is folded into the random key of the step, so devices have different dropout
        masks. Further arguments that are keys are used as they are passed.
      forward_fn: for Functional-SAM, the part of the loss that is the network:
        ``forward_fn(apply, batch, train) -> outputs``, such as ``lambda apply, batch, train:
        apply(batch[0], train=train)``. In place of ``apply``, ``loss_fn`` then receives a function
        that returns these outputs for any arguments, and the method receives the oracle of
        :func:`flatreg.functional_value_and_grad_fn`. Both functions receive the further arguments
        of the step. None means that the method perturbs the whole loss. Cannot be used with
        ``ascent_fraction``.
      skip_nonfinite: whether a step with a NaN or an infinity is skipped. False applies every
        update, which saves memory traffic and compilation, for a chain that contains its own test,
        such as ``optax.chain(method, optax.apply_if_finite(optimizer, 5))``. ``skipped`` is then
        True on the steps that this test skips, and statistics and collections keep their old
        values on them. Cannot be used with a loss scale.

    Returns:
      The step. Its metrics are a dict with:

      * the metrics of ``loss_fn``,
      * ``loss``, the unscaled loss,
      * ``skipped``, whether this step was skipped,
      * if the chain contains :func:`flatreg.observe`: ``grad_norm``, ``direction_norm``,
        ``perturbation_norm`` and ``cosine``, from the last step that was not skipped.

      Donate the state to save memory: ``jax.jit(step, donate_argnums=0)``. If the parameters are
      sharded over axes of type Auto, keep the sharding of every leaf with
      ``out_shardings=(jax.tree.map(lambda x: x.sharding, state), None)``.

    Raises:
      TypeError: if ``loss_fn`` or ``forward_fn`` does not take ``(apply, batch, train)`` and the
        further arguments of the step; if ``loss_fn`` does not return a floating-point scalar; if
        the first argument of the step is not a :class:`TrainState`.
      AttributeError: if ``loss_fn`` uses attributes of ``apply`` with ``forward_fn``.
      ValueError: if an option is out of range, or the parts do not divide the batch; if
        ``forward_fn`` is used with ``ascent_fraction``; if ``skip_nonfinite`` is False and the
        state has a loss scale; if the loss is not a scalar; if ``loss_fn``
        or ``forward_fn`` does not use ``apply``; if a collection changes its structure; if a metric
        has the name of one that the step adds; if the parts of a batch would share a random key; if
        the axis ``axis_name`` does not exist.

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
    _check_signature("loss_fn", loss_fn)
    if forward_fn is not None:
        _check_signature("forward_fn", forward_fn)
        check_functional(ascent_fraction)
    rng_names = (rngs,) if isinstance(rngs, str) else tuple(rngs)
    further_keys = further_argnums(key_argnums, _LOSS_ARGUMENTS)

    def filled_in(params: Params, key: jax.Array, state: TrainState) -> Apply:
        """Return the model of one pass."""
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        variables = state.replace(params=params).variables
        names = () if state.key is None else rng_names
        return Apply(state.apply_fn, variables, key if names else None, names, train=True)

    def scaled_loss(
        params: Params, batch: Any, key: jax.Array, state: TrainState, kwargs: Any, *args: Any
    ) -> Any:
        apply = filled_in(params, key, state)
        loss, metrics = _evaluate(loss_fn, apply, batch, True, *args, **kwargs)
        return loss_scale.scaled(loss, state.dynamic_scale), (metrics, apply.collections)

    options: dict[str, Any] = {
        "has_aux": True,
        "batch_argnums": 1,
        "key_argnums": (2, *(5 + i for i in further_keys)),
        "microbatches": microbatches,
        "shards": shards,
        "axis_name": axis_name,
    }
    if forward_fn is None:
        evaluate = value_and_grad_fn(scaled_loss, ascent_fraction=ascent_fraction, **options)
    else:
        evaluate = _functional_evaluation(forward_fn, loss_fn, filled_in, options)

    def step(
        state: TrainState, batch: Any, *args: Any, **kwargs: Any
    ) -> tuple[TrainState, Metrics]:
        _check_state(state, "state, metrics = train_step(state, batch)")
        call = "train_step(state, batch)"
        check_further_arguments(loss_fn, _LOSS_ARGUMENTS, args, kwargs, call)
        if forward_fn is not None:
            check_further_arguments(forward_fn, _LOSS_ARGUMENTS, args, kwargs, call, "forward_fn")
        if microbatches * (shards or 1) > 1:
            check_keys_are_named(args, kwargs, further_keys)
        # 1. Evaluate the clean pass.
        key = _key_of_step(state)
        with flax_errors_explained(train=True):
            clean = clean_pass(
                evaluate,
                *(state.params, batch, key, state, kwargs, *args),
                dynamic_scale=state.dynamic_scale,
                ascent_fraction=ascent_fraction,
                skip_nonfinite=skip_nonfinite,
            )
            # 2. Compute the update; the method calls clean.grad_fn.
            new_state = state.apply_gradients(
                grads=clean.grads,
                grad_fn=clean.grad_fn,
                value=clean.metrics["loss"],
                skip_nonfinite=skip_nonfinite,
            )
        skipped = new_state.skipped != state.skipped
        metrics, variables = clean.on_whole_batch()
        collections = dict(variables)
        statistics = collections.pop("batch_stats", state.batch_stats)
        keep = functools.partial(jax.tree.map, functools.partial(new_or_old, ~skipped))
        new_state = new_state.replace(
            batch_stats=keep(statistics, state.batch_stats),
            collections=keep(collections, state.collections),
        )
        return new_state, step_metrics(metrics, skipped, new_state.opt_state)

    return step


def make_eval_step(loss_fn: LossFn) -> Callable[..., Metrics]:
    """Make an evaluation step ``step(state, batch) -> metrics``, a pure function for ``jax.jit``.

    The step calls the loss with ``train=False``, without mutable collections and without random
    keys. To evaluate averaged parameters, call ``step(state.replace(params=average), batch)``. The
    step passes further arguments on: ``step(state, batch, *args, **kwargs)`` calls
    ``loss_fn(apply, batch, train, *args, **kwargs)``.

    Args:
      loss_fn: ``loss_fn(apply, batch, train)`` returns ``loss`` or ``(loss, metrics)``: a
        floating-point scalar and a dict. ``apply`` is the model with its variables filled in
        (:class:`Apply`), ``batch`` is the batch that the step received, and ``train`` is False.

    Returns:
      The step. Its metrics are a dict with the metrics of ``loss_fn`` and ``loss``.

    Raises:
      TypeError: if ``loss_fn`` does not take ``(apply, batch, train)`` and the further arguments of
        the step, or does not return a floating-point scalar; if the first argument of the step is
        not a :class:`TrainState`.
      ValueError: if the loss is not a scalar or does not use ``apply``, or if it returns another
        metric with the name ``loss``.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax
      >>> from flatreg.linen import TrainState, make_eval_step
      >>> loss_fn = lambda apply, x, train: jnp.mean(apply(x) ** 2)
      >>> state = TrainState.init(nn.Dense(1), optax.sgd(0.1), jax.random.key(0), jnp.ones((4, 2)))
      >>> print(jax.jit(make_eval_step(loss_fn))(state, jnp.zeros((4, 2))))
      {'loss': Array(0., dtype=float32)}
    """
    _check_signature("loss_fn", loss_fn)

    def step(state: TrainState, batch: Any, *args: Any, **kwargs: Any) -> Metrics:
        _check_state(state, "metrics = eval_step(state, batch)")
        check_further_arguments(loss_fn, _LOSS_ARGUMENTS, args, kwargs, "eval_step(state, batch)")
        apply = Apply(state.apply_fn, state.variables, train=False)
        with flax_errors_explained(train=False):
            return _evaluate(loss_fn, apply, batch, False, *args, **kwargs)[1]

    return step


_LOSS_ARGUMENTS = ("apply", "batch", "train")


def _key_of_step(state: TrainState) -> jax.Array:
    """Return the random key of the next step; a constant key if ``state.key`` is None."""
    key = jax.random.key(0) if state.key is None else state.key
    return jax.random.fold_in(key, state.step)


def _functional_evaluation(
    forward_fn: Callable[..., Any],
    loss_fn: LossFn,
    filled_in: Callable[[Params, jax.Array, TrainState], Apply],
    options: dict[str, Any],
) -> Callable[..., Any]:
    """Return the evaluation of a loss whose network is ``forward_fn``, for Functional-SAM."""

    def network(
        params: Params, batch: Any, key: jax.Array, state: TrainState, kwargs: Any, *args: Any
    ) -> Any:
        apply = filled_in(params, key, state)
        outputs = forward_fn(apply, batch, True, *args, **kwargs)
        _check_used(apply, "forward_fn")
        return outputs, jax.lax.stop_gradient(apply.collections)  # The loss does not use them.

    def scaled_loss(
        out: Any, batch: Any, key: jax.Array, state: TrainState, kwargs: Any, *args: Any
    ) -> Any:
        outputs, collections = out
        loss, metrics = _evaluate(loss_fn, GivenOutputs(outputs), batch, True, *args, **kwargs)
        return loss_scale.scaled(loss, state.dynamic_scale), (metrics, collections)

    return functional_value_and_grad_fn(network, scaled_loss, **options)


def _evaluate(
    loss_fn: LossFn, apply: Any, batch: Any, train: bool, /, *args: Any, **kwargs: Any
) -> tuple[jax.Array, Metrics]:
    """Return the loss, and its metrics with the loss added to them."""
    loss, metrics = loss_and_metrics(loss_fn(apply, batch, train, *args, **kwargs))
    _check_used(apply, "loss_fn")
    return loss, metrics


def _check_used(apply: Apply | GivenOutputs, name: str) -> None:
    if not apply.used:
        raise ValueError(
            f"{name} never called apply, so the loss does not depend on the parameters: write "
            "logits = apply(x, train=train) instead of calling the model itself."
        )


def _check_state(state: Any, call: str) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            "a step takes (state, batch) with a flatreg.linen.TrainState, but its first argument "
            f"is a {type(state).__module__}.{type(state).__name__}: write state = "
            f"TrainState.init(model, tx, key, x) and {call}."
        )


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind_partial(None, None, True)
    except TypeError as error:
        example = {
            "loss_fn": "… return loss, or return loss and a dict of metrics.",
            "forward_fn": "return apply(batch[0], train=train).",
        }
        raise TypeError(
            f"{name} must take (apply, batch, train), but {function!r} does not ({error}): write "
            f"def {name}(apply, batch, train): {example[name]}"
        ) from None
