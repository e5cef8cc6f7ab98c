"""The train state: Flax's own, with statistics, random keys, frozen parameters and a loss scale."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import core, struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
from flax.training.dynamic_scale import DynamicScale

from flatreg._flax import loss_scale
from flatreg._flax.buffers import without_shared_buffers
from flatreg._flax.chain_order import check_order, check_transformation
from flatreg._flax.guarded_update import guarded_update
from flatreg.linen._parameters import (
    has_fp8_scales,
    merge_frozen,
    oracle_of_weights,
    split_trainable,
)
from flatreg.typing import GradFn, Grads, Params


class TrainState(train_state.TrainState):
    """The train state: parameters, optimizer state, statistics, random key and loss scale.

    It extends Flax's ``flax.training.train_state.TrainState``. In most cases, make the state with
    :meth:`init` and update it with the step that :func:`make_train_step` returns. For a custom
    training loop, make it with :meth:`create` and update it with :meth:`apply_gradients`.

    **Skipped steps.** If a gradient that the chain uses contains a NaN or an infinity, in the clean
    pass or in a perturbed one, the whole step is skipped: ``params``, ``opt_state``,
    ``batch_stats`` and ``collections`` keep their old values. ``step`` and ``skipped`` increase by
    one, and the loss scale is reduced.

    Attributes:
      step: the number of steps so far, including skipped ones; an int32 scalar.
      apply_fn: ``model.apply``.
      params: the parameters that are trained.
      tx: the Optax chain: a method followed by an optimizer, or an optimizer alone.
      opt_state: the optimizer state of ``tx``.
      batch_stats: the BatchNorm statistics; an empty dict if the model has none.
      collections: all other mutable collections, such as ``{"cache": cache}``.
      frozen: the parameters that are not trained, nested like ``params``. No gradient is computed
        for them, and ``opt_state`` does not contain them.
      key: the random key, or None if the model draws no random numbers. Step t uses
        ``jax.random.fold_in(key, t)``.
      dynamic_scale: Flax's loss scale for float16, or None. All passes of a step use the same
        scale. After the step it is adjusted once, by Flax's rule.
      skipped: the number of skipped steps so far, an int32 scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
      >>> from flatreg.linen import TrainState, make_train_step
      >>> model, tx = nn.Dense(1), optax.chain(flatreg.sam(0.05), optax.sgd(0.1))
      >>> state = TrainState.init(model, tx, jax.random.key(0), jnp.ones((1, 2)))
      >>> train_step = jax.jit(make_train_step(lambda apply, x, train: jnp.mean(apply(x) ** 2)))
      >>> state, metrics = train_step(state, jnp.ones((4, 2)))
      >>> state, metrics = train_step(state, jnp.full((4, 2), jnp.nan))
      >>> print(state.step, state.skipped, metrics["skipped"])
      2 1 True
    """

    batch_stats: Any = struct.field(default_factory=dict)
    collections: Any = struct.field(default_factory=dict)
    frozen: Params = struct.field(default_factory=dict)
    key: jax.Array | None = None
    dynamic_scale: DynamicScale | None = None
    skipped: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the model, which are the first argument of ``apply_fn``.

        They consist of the trained and the frozen parameters, the BatchNorm statistics and the
        other collections. To run the model, write
        ``state.apply_fn(state.variables, x, train=False)``.
        """
        params = self.params if has_fp8_scales(self.params) else {"params": self.params}
        variables = {**params, "params": merge_frozen(params["params"], self.frozen)}
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {**variables, **statistics, **self.collections}

    @classmethod
    def create(
        cls,
        *,
        apply_fn: Callable[..., Any],
        params: Params,
        tx: optax.GradientTransformation,
        dynamic_scale: DynamicScale | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make the state before the first step from parameters that are already initialized.

        Args:
          apply_fn: ``model.apply``.
          params: the parameters to train: ``model.init(…)["params"]``.
          tx: an Optax chain in which the optimizer comes after the method, such as
            ``optax.chain(flatreg.sam(0.05), optax.sgd(0.1))``. A plain optimizer works too.
          dynamic_scale: ``flax.training.dynamic_scale.DynamicScale()`` for float16, or None.
          **kwargs: other attributes of the state: ``batch_stats``, ``collections``, ``frozen`` and
            ``key``.

        Returns:
          The state. Its counters are arrays, which avoids retracing on the second step. No two
          leaves share a buffer, so the whole state can be donated.

        Raises:
          TypeError: if ``tx`` is not an Optax transformation.
          ValueError: if ``tx`` ends in a method, has an adaptive optimizer before a method, or
            accumulates gradients around a method with ``optax.MultiSteps``.

        Examples:
          >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
          >>> from flatreg.linen import TrainState
          >>> model = nn.BatchNorm(use_running_average=False)
          >>> variables = model.init(jax.random.key(0), jnp.ones((4, 2)))
          >>> state = TrainState.create(
          ...     apply_fn=model.apply,
          ...     params=variables["params"],
          ...     batch_stats=variables["batch_stats"],
          ...     tx=optax.chain(flatreg.sam(0.05), optax.sgd(0.1)),
          ... )
          >>> print(state.step, state.batch_stats["mean"])
          0 [0. 0.]
        """
        check_transformation(tx)
        if dynamic_scale is not None:
            dynamic_scale = loss_scale.with_array_fields(dynamic_scale)
        opt_state = tx.init(params["params"] if has_fp8_scales(params) else params)
        check_order(opt_state)
        state = cls(
            step=jnp.zeros((), jnp.int32),
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            opt_state=opt_state,
            dynamic_scale=dynamic_scale,
            **kwargs,
        )
        return cast(Self, without_shared_buffers(state))

    @classmethod
    def init(
        cls,
        model: nn.Module,
        tx: optax.GradientTransformation,
        key: jax.Array,
        *example_inputs: Any,
        trainable: Callable[[str], bool] | None = None,
        dynamic_scale: DynamicScale | None = None,
        **kwargs: Any,
    ) -> Self:
        """Initialize a model and make the state before the first step.

        The state keeps all collections of the model: parameters, BatchNorm statistics, caches.

        Args:
          model: the Linen module.
          tx: the Optax chain: a method followed by an optimizer, or an optimizer alone.
          key: a random key, which is split in two. One key initializes the parameters, and the
            other one becomes the ``key`` of the state, which dropout uses.
          *example_inputs: inputs with the shapes of a batch; a batch of one example is enough.
          trainable: a function from the path of a parameter, such as
            ``"encoder/Dense_0/kernel"``, to whether the parameter is trained, for example
            ``lambda path: "lora" in path``. All other parameters become ``frozen``. None trains
            all parameters.
          dynamic_scale: ``flax.training.dynamic_scale.DynamicScale()`` for float16, or None.
          **kwargs: keyword arguments of the model, such as ``train=False``.

        Returns:
          The state, which can be donated as a whole.

        Raises:
          ValueError: if ``trainable`` selects no parameter; if ``tx`` ends in a method, has an
            adaptive optimizer before a method, or wraps ``optax.MultiSteps`` around a method.
          TypeError: if ``tx`` is not an Optax transformation.

        Examples:
          >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
          >>> from flatreg.linen import TrainState
          >>> model = nn.Sequential([nn.Dense(3), nn.Dense(1)])
          >>> tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1))
          >>> last = lambda path: path.startswith("layers_1")
          >>> state = TrainState.init(model, tx, jax.random.key(0), jnp.ones(2), trainable=last)
          >>> print(list(state.params), list(state.frozen))
          ['layers_1'] ['layers_0']
        """
        init_key, key = jax.random.split(key)
        collections = dict(core.unfreeze(model.init(init_key, *example_inputs, **kwargs)))
        params, frozen = collections.pop("params", {}), None
        if trainable is not None:
            params, frozen = split_trainable(params, trainable)
        if has_fp8_scales(collections):
            fp8_scales = collections.pop(OVERWRITE_WITH_GRADIENT)
            params = {"params": params, OVERWRITE_WITH_GRADIENT: fp8_scales}
        return cls.create(
            apply_fn=model.apply,
            params=params,
            tx=tx,
            batch_stats=collections.pop("batch_stats", {}),
            collections=collections,
            frozen=frozen or {},
            key=key,
            dynamic_scale=dynamic_scale,
        )

    def apply_gradients(
        self,
        *,
        grads: Grads,
        grad_fn: GradFn | None = None,
        value: jax.Array | None = None,
        skip_nonfinite: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Apply one update of ``tx``, for custom train steps.

        Args:
          grads: the gradient, a tree shaped like ``params``. With a loss scale, divide it by the
            scale first.
          grad_fn: the gradient oracle that :func:`flatreg.value_and_grad_fn` returned. Required if
            ``tx`` contains a method.
          value: the loss, not multiplied by a loss scale. Required if ``tx`` contains a
            transformation that uses the loss, such as ``optax.contrib.reduce_on_plateau`` or
            ``optax.polyak_sgd``.
          skip_nonfinite: whether a step with a NaN or an infinity is skipped. False applies every
            update, and ``skipped`` counts only the steps that the chain itself skips, for example
            with ``optax.apply_if_finite``. Cannot be used with a loss scale.
          **kwargs: new values of other attributes of the state, such as ``batch_stats``.

        Returns:
          The new state. If a gradient that the chain uses is not finite, the step is skipped: the
          state keeps its old values, except that ``step`` and ``skipped`` increase by one. In both
          cases ``dynamic_scale``, if there is one, is adjusted by Flax's rule.

        Raises:
          ValueError: if ``skip_nonfinite`` is False and the state has a loss scale.

        Examples:
          >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, flatreg
          >>> from flatreg.linen import TrainState
          >>> model, x = nn.Dense(1), jnp.ones((4, 2))
          >>> tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1))
          >>> state = TrainState.init(model, tx, jax.random.key(0), x)
          >>> def loss_fn(params, x):
          ...     return jnp.mean(state.apply_fn({"params": params}, x) ** 2)
          >>> loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn)(state.params, x)
          >>> state = state.apply_gradients(grads=grads, grad_fn=grad_fn)
          >>> print(state.step, bool(loss_fn(state.params, x) < loss))
          1 True
        """
        loss_scale.check_skipping(self.dynamic_scale, skip_nonfinite)
        params, all_grads = self.params, grads
        if has_fp8_scales(all_grads):
            params, grads = params["params"], all_grads["params"]
            grad_fn = grad_fn and oracle_of_weights(grad_fn, self.params)
        params, opt_state, finite = guarded_update(
            self.tx,
            grads,
            self.opt_state,
            params,
            grad_fn,
            value,
            skip_nonfinite=skip_nonfinite,
        )
        choose = functools.partial(jax.tree.map, functools.partial(new_or_old, finite))
        if has_fp8_scales(all_grads):
            params = choose({**all_grads, "params": params}, self.params)
        if self.dynamic_scale is not None:
            kwargs = {"dynamic_scale": loss_scale.adjusted(self.dynamic_scale, finite), **kwargs}
        static = {x.name for x in dataclasses.fields(self) if not x.metadata.get("pytree_node", 1)}
        for name in kwargs.keys() - static - {"dynamic_scale"}:
            kwargs[name] = choose(kwargs[name], getattr(self, name))
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=self.skipped + (~finite).astype(jnp.int32),
            **kwargs,
        )


def new_or_old(finite: jax.Array, new: Any, old: Any) -> jax.Array:
    """Return the new value if the step was finite, otherwise the old one.

    The result has the dtype of the old value, so that the state can be carried through a scan.
    """
    chosen = jnp.where(finite, new, old)
    return chosen if chosen.dtype == jnp.result_type(old) else chosen.astype(jnp.result_type(old))
