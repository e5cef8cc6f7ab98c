"""The training state: Flax's own, with statistics, keys, frozen parameters and a loss scale."""

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

from flatreg._flax.guard import adjusted_scale, check_order, check_transformation, guarded_update
from flatreg.linen._parameters import (
    has_overwritten,
    joined,
    parted,
    without_aliases,
    without_overwritten,
)
from flatreg.typing import GradFn, Grads, Params


class TrainState(train_state.TrainState):
    """Flax's training state with what a step needs beside the parameters.

    A step is skipped whole where a gradient that its method uses is not finite, of whichever pass:
    parameters, optimizer state, statistics and collections stay as they were, while ``step`` and
    ``skipped`` count it.

    Attributes:
      step: the number of steps so far, skipped ones included; an int32 scalar.
      apply_fn: ``model.apply``.
      params: the parameters that are trained.
      tx: the Optax chain.
      opt_state: its state.
      batch_stats: the statistics of BatchNorm.
      collections: all other mutable collections, such as ``{"cache": …}``.
      frozen: parameters that are not trained, nested like ``params``. They cost no gradient.
      key: the random key, from which step t takes ``fold_in(key, t)``; None without dropout.
      dynamic_scale: Flax's loss scale for float16, or None. Here it is data only: each step runs
        under one fixed scale, and all of its passes together decide how it changes.
      skipped: how many steps were skipped; an int32 scalar.
    """

    batch_stats: Any = struct.field(default_factory=dict)
    collections: Any = struct.field(default_factory=dict)
    frozen: Params = struct.field(default_factory=dict)
    key: jax.Array | None = None
    dynamic_scale: DynamicScale | None = None
    skipped: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    @property
    def variables(self) -> dict[str, Any]:
        """What ``apply_fn`` takes first: all parameters, the statistics, the other collections."""
        params = self.params if has_overwritten(self.params) else {"params": self.params}
        variables = {**params, "params": joined(params["params"], self.frozen)}
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
        """Makes the state of step 0.

        Args:
          apply_fn: ``model.apply``.
          params: the parameters to train: ``model.init(…)["params"]``.
          tx: an Optax chain that ends in an optimizer; any optimizer will do without a method.
          dynamic_scale: ``flax.training.dynamic_scale.DynamicScale()`` for float16.
          **kwargs: the other attributes: ``batch_stats``, ``key``, ``collections``, ``frozen``.

        Returns:
          The state. Its counters are arrays, so that the second step is no second trace, and each
          of its arrays is its own, so that all of them can be donated.

        Raises:
          TypeError: if ``tx`` is no Optax transformation.
          ValueError: if ``tx`` ends in a method, or accumulates gradients around one.

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
            dynamic_scale = dynamic_scale.replace(
                scale=jnp.asarray(dynamic_scale.scale, jnp.float32),
                fin_steps=jnp.asarray(dynamic_scale.fin_steps, jnp.int32),
            )
        opt_state = tx.init(params["params"] if has_overwritten(params) else params)
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
        return cast(Self, without_aliases(state))

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
        """Initializes a model and makes the state of step 0 of all its variables.

        Args:
          model: the Linen module.
          tx: as for :meth:`create`.
          key: a random key for the parameters and the steps.
          *example_inputs: inputs to initialize the model with; one example is enough.
          trainable: which parameters to train, by their path: ``lambda path: "lora" in path`` of
            paths like ``"encoder/Dense_0/kernel"``. The others are ``frozen``. None trains all.
          dynamic_scale: as for :meth:`create`.
          **kwargs: handed to the model, such as ``train=False``.

        Returns:
          The state.

        Raises:
          TypeError: as :meth:`create`.
          ValueError: as :meth:`create`, and if ``trainable`` picks no parameter.

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
            params, frozen = parted(params, trainable)
        if has_overwritten(collections):
            overwritten = collections.pop(OVERWRITE_WITH_GRADIENT)
            params = {"params": params, OVERWRITE_WITH_GRADIENT: overwritten}
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
        **kwargs: Any,
    ) -> Self:
        """One step of ``tx``, for training steps of your own.

        Args:
          grads: the gradient, shaped like ``params``, unscaled.
          grad_fn: the oracle that :func:`flatreg.value_and_grad_fn` returned, if a method wants it.
          value: the unscaled loss, if a link of the chain wants it, as
            ``optax.contrib.reduce_on_plateau`` and ``optax.polyak_sgd`` do.
          **kwargs: new values of other attributes, such as ``batch_stats``.

        Returns:
          The new state, or, if a pass was not finite, the old one with ``step`` and ``skipped``
          counted up. In both cases ``dynamic_scale``, if there is one, has followed Flax's rule.

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
        params, whole = self.params, grads
        if has_overwritten(whole):
            params, grads = params["params"], whole["params"]
            grad_fn = grad_fn and without_overwritten(grad_fn, self.params)
        params, opt_state, finite = guarded_update(
            self.tx, grads, self.opt_state, params, grad_fn, value
        )
        keep = functools.partial(jax.tree.map, functools.partial(_new_or_old, finite))
        if has_overwritten(whole):
            params = keep({**whole, "params": params}, self.params)
        if self.dynamic_scale is not None:
            kwargs = {"dynamic_scale": adjusted_scale(self.dynamic_scale, finite), **kwargs}
        static = {x.name for x in dataclasses.fields(self) if not x.metadata.get("pytree_node", 1)}
        for name in kwargs.keys() - static - {"dynamic_scale"}:
            kwargs[name] = keep(kwargs[name], getattr(self, name))
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=self.skipped + ~finite,
            **kwargs,
        )


def _new_or_old(finite: jax.Array, new: Any, old: Any) -> jax.Array:
    """One of both, in the old one's dtype, so that the state can be carried through a scan."""
    chosen = jnp.where(finite, new, old)
    return chosen if chosen.dtype == jnp.result_type(old) else chosen.astype(jnp.result_type(old))
