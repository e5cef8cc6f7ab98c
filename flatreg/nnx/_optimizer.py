"""The optimizer of a train step: Flax's own, with a count of skipped steps and a loss scale."""

from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from flatreg._flax.guard import check_transformation

Model = TypeVar("Model")


class Optimizer(nnx.Optimizer[Model]):
    """``nnx.Optimizer`` that counts skipped steps and holds a loss scale for float16.

    Args:
      model: the model.
      tx: an Optax chain that ends in an optimizer.
      wrt: which Variables to train, such as ``nnx.Param``; all others cost no gradient.
      dynamic_scale: Flax's ``DynamicScale()`` for float16. Here it is data only: each step runs
        under one fixed scale, and all of its passes together decide how it changes.
      **options: handed to ``nnx.Optimizer``, such as ``graph``.

    Attributes:
      step: the number of steps so far, skipped ones included.
      skipped: how many steps were skipped because a pass was not finite.
      dynamic_scale: the loss scale with its numbers in Variables, or None.

    Raises:
      TypeError: if ``tx`` is no Optax transformation.
      ValueError: if the model shares modules in tree mode.

    Examples:
      >>> import optax, flatreg
      >>> from flax import nnx
      >>> from flax.training.dynamic_scale import DynamicScale
      >>> model = nnx.Linear(2, 1, dtype="float16", rngs=nnx.Rngs(0))
      >>> tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1))
      >>> optimizer = Optimizer(model, tx, wrt=nnx.Param, dynamic_scale=DynamicScale())
      >>> print(optimizer.skipped[...], optimizer.dynamic_scale.scale[...])
      0 65536.0
    """

    def __init__(
        self,
        model: Model,
        tx: optax.GradientTransformation,
        *,
        wrt: Any,
        dynamic_scale: DynamicScale | None = None,
        **options: Any,
    ) -> None:
        check_transformation(tx)
        try:
            super().__init__(model, tx, wrt=wrt, **options)
        except ValueError as error:
            if not (shared := nnx.find_duplicates(model)):
                raise
            paths = " and ".join(".".join(map(str, path)) for path in shared[0])
            raise ValueError(
                f"{type(model).__name__} shares what it holds at {paths}, which tree mode does not "
                "allow: write Optimizer(model, tx, wrt=nnx.Param, graph=True) and "
                "nnx.jit(train_step, graph=True, graph_updates=True), or nnx.set_graph_mode(True)."
            ) from error
        self.skipped = nnx.OptState(jnp.zeros((), jnp.uint32))
        self.dynamic_scale: Any = None
        if dynamic_scale is not None:
            scale = nnx.OptState(jnp.asarray(dynamic_scale.scale, jnp.float32))
            fin_steps = nnx.OptState(jnp.asarray(dynamic_scale.fin_steps, jnp.int32))
            self.dynamic_scale = nnx.data(dynamic_scale.replace(scale=scale, fin_steps=fin_steps))
