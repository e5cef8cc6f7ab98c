"""Train and evaluation steps for Flax NNX: ``make_train_step`` and ``make_eval_step``."""

import inspect
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from flatreg._core.batches import leading_axis
from flatreg._core.devices import AxisName
from flatreg._core.functional import functional_value_and_grad_fn
from flatreg._core.oracle import value_and_grad_fn
from flatreg._flax import loss_scale
from flatreg._flax.chain_order import check_order
from flatreg._flax.classification_loss import cross_entropy_and_accuracy
from flatreg._flax.clean_pass import clean_pass
from flatreg._flax.functional import GivenOutputs, check_functional
from flatreg._flax.guarded_update import GuardedUpdate, guarded_update
from flatreg._flax.loss_arguments import (
    check_further_arguments,
    check_keys_are_named,
    further_argnums,
)
from flatreg._flax.metrics import LossOutput, Metrics, loss_and_metrics, step_metrics
from flatreg.nnx._dropout_counts import advance_counts
from flatreg.nnx._nodes import (
    Arguments,
    PassChanges,
    changes_of_nodes,
    copies_for_part,
    run_on_copies,
    update_nodes,
    with_nodes,
    without_nodes,
)
from flatreg.nnx._optimizer import Optimizer
from flatreg.nnx._variables import (
    GRAPH,
    ModelChanges,
    SplitModel,
    as_pure,
    copied,
    split_model,
    split_nodes,
    with_changes,
)
from flatreg.typing import Params


class LossFn(Protocol):
    """A loss function, ``loss_fn(model, batch) -> loss`` or ``(loss, metrics)``.

    It may take further arguments, ``loss_fn(model, batch, *args, **kwargs)``, which the step passes
    on.
    """

    def __call__(self, model: Any, batch: Any, /, *args: Any, **kwargs: Any) -> LossOutput:
        """Return the loss of a batch.

        Args:
          model: a copy of the model that the step received, in the same mode.
          batch: the batch that the step received.
          *args: the positional arguments of the step after the batch.
          **kwargs: the keyword arguments of the step.

        Returns:
          The loss, a floating-point scalar, or a pair of the loss and a dict of metrics.
        """
        ...


def classification_loss(model: Any, batch: Any) -> tuple[jax.Array, Metrics]:
    """The loss of a classifier: mean softmax cross-entropy, with the accuracy as a metric.

    Pass this function itself to :func:`make_train_step` and :func:`make_eval_step`.

    Args:
      model: the model, which is called as ``model(x)`` and returns logits of shape
        ``(examples, classes)``.
      batch: a pair ``(x, labels)`` of inputs and integer labels.

    Returns:
      The loss, in at least float32, and ``{"accuracy": accuracy}``.

    Raises:
      TypeError: if the batch is not a pair, or if the labels are not integers.
      ValueError: if there is not one label per example, for example because labels are one-hot.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg.nnx import classification_loss
      >>> loss, metrics = classification_loss(lambda x: x, (4 * jnp.eye(3), jnp.arange(3)))
      >>> print(f"{loss:.3f} {metrics['accuracy']}")
      0.036 1.0
    """
    return cross_entropy_and_accuracy(model, batch)


def make_train_step(
    loss_fn: LossFn,
    *,
    key_argnums: int | Sequence[int] | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
    axis_name: AxisName | None = None,
    forward_fn: Callable[..., Any] | None = None,
    skip_nonfinite: bool = True,
) -> Callable[..., Metrics]:
    """Make a train step ``step(model, optimizer, batch) -> metrics``, which updates both in place.

    The step passes further arguments on to the loss: ``step(model, optimizer, batch, *args,
    **kwargs)`` calls ``loss_fn(model, batch, *args, **kwargs)``. NNX objects among them, such as
    ``nnx.Rngs``, are treated like the model: each pass runs a copy, and the changes of the clean
    pass are written back.

    Compile the step with ``nnx.jit``. ``jax.jit`` works on copies of the model and the optimizer,
    whose changes would be lost.

    A step has four phases:

    1. The model is split into its parameters and its other Variables. Every pass runs a copy.
    2. The clean pass evaluates the loss and its gradient at the parameters. It alone provides the
       metrics and the new values of BatchNorm statistics and other Variables.
    3. The chain ``optimizer.tx`` computes the update. The method in it requests further gradients
       of the same loss, on the same batch, with the same dropout masks.
    4. The new values are written to the model and the optimizer.

    A step is skipped as a whole if a gradient that the chain uses contains a NaN or an infinity, in
    any pass. If the clean loss is not finite, all gradients that the method requests count as NaN.
    In the model, a skipped step changes only the dropout counts (``nnx.RngCount``), so that the
    next step draws new masks. In the optimizer, it changes only ``step``, ``skipped`` and
    ``dynamic_scale``: the first two increase by one, and the loss scale is reduced.

    With ``optimizer.dynamic_scale`` (float16), every pass multiplies the loss by the scale and
    divides the gradient by it, in at least float32, before the method sees it. Transformations of
    the chain that use the loss (``optax.contrib.reduce_on_plateau``, ``optax.polyak_sgd``) receive
    the unscaled loss of the clean pass as ``value``.

    Args:
      loss_fn: ``loss_fn(model, batch)`` returns ``loss`` or ``(loss, metrics)``: a floating-point
        scalar and a dict. ``model`` is a copy of the model that the step received. The loss may
        change the Variables of the model, but it must not create or remove any. Further arguments
        of the step follow, such as a random key or the weight of a penalty.
      key_argnums: the numbers of the further arguments of ``loss_fn`` that are random keys; 2 for
        ``loss_fn(model, batch, key)``. All passes of a step use the same key. Microbatch or shard i
        gets ``fold_in(key, i)``. Needed only with ``microbatches`` and ``shards``.
      microbatches: the number k ≥ 1 of microbatches. Every pass evaluates them one after another,
        with the memory of one. Microbatch i has the examples i, i+k, i+2k, …, and i is folded into
        every ``nnx.RngKey`` of its pass. Floating-point metrics and Variables are averaged over the
        microbatches; others come from the last one.
      shards: the number of contiguous parts of the batch that :func:`flatreg.per_shard` perturbs
        separately; None if the chain does not contain it. The index of the first example of a part
        is folded into every ``nnx.RngKey`` of its pass. Floating-point metrics and Variables are
        averaged over the parts; others come from the last one.
      ascent_fraction: the fraction of the batch, in (0, 1], that the clean pass uses. Values below
        1 make the step cheaper and suit only :func:`flatreg.sam` and :func:`flatreg.asam`; see
        :func:`flatreg.value_and_grad_fn`. The perturbed pass uses the whole batch, so it provides
        the metrics and Variables, and ``loss`` is the loss at the perturbed parameters. On steps
        without a perturbed pass (:func:`flatreg.every`), the clean pass provides them.
      axis_name: the axis of ``jax.pmap`` or ``jax.shard_map`` over which the batch is divided, or a
        tuple of such axes; None elsewhere, including ``nnx.jit`` with sharded arrays. The loss, all
        gradients, and floating-point metrics and Variables are averaged over the devices; others
        stay the device's own. The model and the optimizer must be the same on all devices. The
        index of the device is folded into every ``nnx.RngKey``, so devices have different dropout
        masks. Further arguments that are keys are used as they are passed.
      forward_fn: for Functional-SAM, the part of the loss that is the network:
        ``forward_fn(model, batch) -> outputs``, such as ``lambda model, batch: model(batch[0])``.
        In place of the model, ``loss_fn`` then receives a function that returns these outputs for
        any arguments, and the method receives the oracle of
        :func:`flatreg.functional_value_and_grad_fn`. Both functions receive the further arguments
        of the step; in NNX objects among them, ``loss_fn`` sees what ``forward_fn`` changed. None
        means that the method perturbs the whole loss. Cannot be used with ``ascent_fraction``.
      skip_nonfinite: whether a step with a NaN or an infinity is skipped. False applies every
        update, which saves memory traffic and compilation, for a chain that contains its own test,
        such as ``optax.chain(method, optax.apply_if_finite(optimizer, 5))``. ``skipped`` is then
        True on the steps that this test skips, and Variables of the model keep their old
        values on them. Cannot be used with a loss scale.

    Returns:
      The step, for ``nnx.jit``. Its optimizer is an :class:`Optimizer`, or an ``nnx.Optimizer`` if
      skipped steps need not be counted. Its metrics are a dict with:

      * the metrics of ``loss_fn``, and the unscaled loss as ``loss``,
      * ``skipped``, whether this step was skipped,
      * if the chain contains :func:`flatreg.observe`: ``grad_norm``, ``direction_norm``,
        ``perturbation_norm`` and ``cosine``, from the last step that was not skipped.

      Donate the model and the optimizer to save memory: ``nnx.jit(step, donate_argnums=(0, 1))``.

    Raises:
      TypeError: if the second argument of the step is not an ``nnx.Optimizer``; if the loss or
        ``forward_fn`` does not take the further arguments of the step; if the loss is not a
        floating-point scalar; if ``jax.jit`` or another transformation of JAX calls the step.
      AttributeError: if ``loss_fn`` uses attributes of the model with ``forward_fn``.
      ValueError: if an option is out of range, or the parts do not divide the batch; if
        ``forward_fn`` is used with ``ascent_fraction``; if ``skip_nonfinite`` is False and the
        optimizer has a loss scale; if the loss is not a scalar, or creates Variables; if ``wrt``
        selects no Variable; if the chain has a method in the wrong place, for example at its end;
        if a metric has the name of one that the step adds; if the parts of a batch would share a
        random key; if the axis ``axis_name`` does not exist.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> from flax import nnx
      >>> from flatreg.nnx import classification_loss, make_eval_step, make_train_step
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
    if forward_fn is not None:
        check_functional(ascent_fraction)
    further_keys = further_argnums(key_argnums, _LOSS_ARGUMENTS)

    def scaled_loss(
        params: Params,
        batch: Any,
        example_numbers: jax.Array | None,
        start: _Start,
        *args: Any,
    ) -> tuple[jax.Array, tuple[Metrics, PassChanges]]:
        """Run one pass as a pure function of the parameters, on a copy of the model."""
        out, changes = _run_on_copies(loss_fn, params, batch, example_numbers, start, args)
        loss, metrics = loss_and_metrics(out)
        return loss_scale.scaled(loss, start.dynamic_scale), (metrics, changes)

    options: dict[str, Any] = {
        "has_aux": True,
        "batch_argnums": (1, 2),
        "key_argnums": [4 + i for i in further_keys],
        "microbatches": microbatches,
        "shards": shards,
        "axis_name": axis_name,
    }
    if forward_fn is None:
        evaluate = value_and_grad_fn(scaled_loss, ascent_fraction=ascent_fraction, **options)
    else:
        evaluate = _functional_evaluation(forward_fn, loss_fn, options)
    parts = microbatches * (shards or 1)

    def step(
        model: Any, optimizer: nnx.Optimizer[Any], batch: Any, *args: Any, **kwargs: Any
    ) -> Metrics:
        _check_caller(inspect.currentframe())
        _check_optimizer(optimizer)
        call = "train_step(model, optimizer, batch)"
        check_further_arguments(loss_fn, _LOSS_ARGUMENTS, args, kwargs, call)
        if forward_fn is not None:
            check_further_arguments(forward_fn, _LOSS_ARGUMENTS, args, kwargs, call, "forward_fn")
        further = without_nodes(args, kwargs)
        if parts > 1:
            check_keys_are_named(further.args, further.kwargs, further_keys)
        # 1. Split the model.
        before = split_model(model, optimizer.wrt)
        nodes = split_nodes(further.nodes)
        opt_state = as_pure(optimizer.opt_state)
        dynamic_scale = as_pure(getattr(optimizer, "dynamic_scale", None))
        check_order(opt_state)
        loss_scale.check_skipping(dynamic_scale, skip_nonfinite)
        # 2. Evaluate the clean pass.
        start = _Start(before, nodes, further, dynamic_scale, axis_name)
        clean = clean_pass(
            evaluate,
            *(before.params, batch, _example_numbers(batch, parts), start, *further.args),
            dynamic_scale=dynamic_scale,
            ascent_fraction=ascent_fraction,
            skip_nonfinite=skip_nonfinite,
        )
        # 3. Compute the update; the method calls clean.grad_fn.
        update = guarded_update(
            optimizer.tx,
            clean.grads,
            opt_state,
            before.params,
            clean.grad_fn,
            clean.metrics["loss"],
            skip_nonfinite=skip_nonfinite,
        )
        # 4. Write the new values to the model and the optimizer.
        metrics, changes = clean.on_whole_batch()
        _update_model(model, before, changes.model, update)
        update_nodes(further.nodes, nodes, changes.nodes, update.finite)
        _update_optimizer(optimizer, dynamic_scale, update)
        return step_metrics(metrics, ~update.finite, update.opt_state)

    return step


def make_eval_step(loss_fn: LossFn) -> Callable[..., Metrics]:
    """Make an evaluation step ``step(model, batch) -> metrics``, which does not change the model.

    The step runs a copy of the model in its current mode. Call ``model.eval()`` before the step, so
    that BatchNorm uses its statistics and dropout is off, and call ``model.train()`` afterward. The
    step passes further arguments on: ``step(model, batch, *args, **kwargs)`` calls
    ``loss_fn(model, batch, *args, **kwargs)``.

    Args:
      loss_fn: ``loss_fn(model, batch)`` returns ``loss`` or ``(loss, metrics)``: a floating-point
        scalar and a dict. ``model`` is a copy of the model that the step received.

    Returns:
      The step, for ``nnx.jit``. Its metrics are a dict with the metrics of ``loss_fn`` and
      ``loss``.

    Raises:
      TypeError: if the loss does not take the further arguments of the step, or is not a
        floating-point scalar.
      ValueError: if the loss is an array that is not a scalar, or if it returns another metric with
        the name ``loss``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from flatreg.nnx import make_eval_step
      >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> eval_step = nnx.jit(make_eval_step(lambda model, x: jnp.mean(model(x))))
      >>> print(eval_step(model, jnp.ones((4, 2)))["loss"], model.mean[...])
      0.0 [0. 0.]
    """

    def step(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Metrics:
        call = "eval_step(model, batch)"
        check_further_arguments(loss_fn, _LOSS_ARGUMENTS, args, kwargs, call)
        graphdef, state = nnx.split(model, **GRAPH)
        copy = nnx.merge(graphdef, copied(state))
        return loss_and_metrics(loss_fn(copy, batch, *args, **kwargs))[1]

    return step


_LOSS_ARGUMENTS = ("model", "batch")


class _Start(NamedTuple):
    """What all passes of a step start from, in addition to the parameters and the batch.

    Attributes:
      model: the model before the step.
      nodes: the NNX objects among the further arguments before the step.
      further: the further arguments.
      dynamic_scale: the loss scale, or None.
      axis_name: the axis over whose devices the batch is divided, or None.
    """

    model: SplitModel
    nodes: SplitModel
    further: Arguments
    dynamic_scale: Any
    axis_name: AxisName | None


def _run_on_copies(
    function: Callable[..., Any],
    params: Params,
    batch: Any,
    example_numbers: jax.Array | None,
    start: _Start,
    args: Sequence[Any],
) -> tuple[Any, PassChanges]:
    """Call a function of the model and the batch with copies of the model and of NNX objects."""

    def on_batch(model: Any, *args: Any, **kwargs: Any) -> Any:
        return function(model, batch, *args, **kwargs)

    model = start.model._replace(params=params)
    further = start.further._replace(args=tuple(args))
    return run_on_copies(on_batch, model, start.nodes, further, example_numbers, start.axis_name)


def _functional_evaluation(
    forward_fn: Callable[..., Any], loss_fn: LossFn, options: dict[str, Any]
) -> Callable[..., Any]:
    """Return the evaluation of a loss whose network is ``forward_fn``, for Functional-SAM."""

    def network(
        params: Params,
        batch: Any,
        example_numbers: jax.Array | None,
        start: _Start,
        *args: Any,
    ) -> tuple[Any, PassChanges]:
        outputs, changes = _run_on_copies(forward_fn, params, batch, example_numbers, start, args)
        of_model = jax.lax.stop_gradient(changes.model)  # The loss does not use them.
        return outputs, changes._replace(model=of_model)

    def scaled_loss(
        out: tuple[Any, PassChanges],
        batch: Any,
        example_numbers: jax.Array | None,
        start: _Start,
        *args: Any,
    ) -> tuple[jax.Array, tuple[Metrics, PassChanges]]:
        outputs, changes = out
        nodes, copies = copies_for_part(
            start.nodes, example_numbers, start.axis_name, changes.nodes
        )
        arguments, kwargs = with_nodes(start.further.places, copies, args, start.further.kwargs)
        given = GivenOutputs(outputs)
        loss, metrics = loss_and_metrics(loss_fn(given, batch, *arguments, **kwargs))
        if not given.used:
            raise ValueError(
                "with forward_fn, loss_fn must call its first argument, which returns the outputs "
                "of forward_fn, because its loss does not depend on the parameters otherwise: "
                "write def loss_fn(model, batch): logits = model(batch[0]) …."
            )
        changes = changes._replace(nodes=changes_of_nodes(nodes, copies))
        return loss_scale.scaled(loss, start.dynamic_scale), (metrics, changes)

    return functional_value_and_grad_fn(network, scaled_loss, **options)


def _example_numbers(batch: Any, parts: int) -> jax.Array | None:
    """Return the indices 0, 1, … of the examples, or None if the batch is not divided."""
    return jnp.arange(leading_axis(batch, parts)) if parts > 1 else None


def _update_model(
    model: Any, before: SplitModel, changes: ModelChanges, update: GuardedUpdate
) -> None:
    """Write the new parameters and the changes of the clean pass to the model."""
    rng_state = advance_counts(before.rng_state, changes.rng_state)
    variables = with_changes(before.variables, changes.variables, keep=update.finite)
    nnx.update(model, update.params, rng_state, variables)


def _update_optimizer(
    optimizer: nnx.Optimizer[Any], dynamic_scale: Any, update: GuardedUpdate
) -> None:
    """Write the new optimizer state, the counters and the adjusted loss scale to the optimizer."""
    nnx.update(optimizer.opt_state, nnx.state(update.opt_state, **GRAPH))
    optimizer.step[...] += 1
    if isinstance(optimizer, Optimizer):
        optimizer.skipped[...] += (~update.finite).astype(jnp.uint32)
        if dynamic_scale is not None:
            adjusted = loss_scale.adjusted(dynamic_scale, update.finite)
            nnx.update(optimizer.dynamic_scale, nnx.state(adjusted, **GRAPH))


def _check_caller(frame: FrameType | None) -> None:
    """Check that no transformation of JAX itself calls the step.

    JAX passes copies of the model and the optimizer to the function that it traces, and a step
    returns only metrics, so nothing would change. The transformations of Flax, such as ``nnx.jit``,
    write the changes back.
    """
    caller = None if frame is None else frame.f_back
    if caller is not None and caller.f_globals.get("__name__", "").startswith("jax."):
        raise TypeError(
            "a transformation of JAX, such as jax.jit, calls the train step. It passes copies of "
            "the model and the optimizer, so their changes would be lost: write train_step = "
            "nnx.jit(make_train_step(loss_fn), donate_argnums=(0, 1))."
        )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(
            "a train step takes (model, optimizer, batch), but its second argument is a "
            f"{type(optimizer).__name__}: write optimizer = nnx.Optimizer(model, tx, "
            "wrt=nnx.Param) and train_step(model, optimizer, batch)."
        )
