"""The optimizer of a train step: Flax's own, with a count of skipped steps and a loss scale."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from flatreg._flax import loss_scale
from flatreg._flax.buffers import without_shared_buffers
from flatreg._flax.chain_order import check_transformation
from flatreg.nnx._variables import GRAPH

Model = TypeVar("Model")


class Optimizer(nnx.Optimizer[Model]):
    """An ``nnx.Optimizer`` that counts skipped steps and holds a loss scale for float16.

    The step that :func:`make_train_step` returns also works with a plain ``nnx.Optimizer``, which
    has neither the count nor the loss scale.

    No two Variables of the model and the optimizer share an array afterward: repeated arrays are
    replaced by copies, so that both can be donated. A plain ``nnx.Optimizer`` cannot be donated
    together with the model if ``tx`` keeps the initial parameters, as ``optax.contrib.dog`` does.

    Args:
      model: the model to train.
      tx: an Optax chain in which the optimizer comes after the method, such as
        ``optax.chain(flatreg.sam(0.05), optax.sgd(0.1))``. A plain optimizer works too.
      wrt: the filter that selects the Variables to train, such as ``nnx.Param``. No gradient is
        computed for any other Variable.
      dynamic_scale: ``flax.training.dynamic_scale.DynamicScale()`` for float16, or None. All passes
        of a step use the same scale. After the step it is adjusted once, by Flax's rule.
      **options: other keyword arguments of ``nnx.Optimizer``, such as ``graph``.

    Attributes:
      step: the number of steps so far, including skipped ones.
      skipped: the number of steps that were skipped because a pass was not finite.
      dynamic_scale: the loss scale, whose numbers are stored in Variables, or None.

    Raises:
      TypeError: if ``tx`` is not an Optax transformation.
      ValueError: if modules are shared within the model and tree mode is on.

    Examples:
      >>> import optax, flatreg
      >>> from flax import nnx
      >>> from flax.training.dynamic_scale import DynamicScale
      >>> from flatreg.nnx import Optimizer
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
                f"{type(model).__name__} holds the same object at {paths}, which tree mode does "
                "not allow: write Optimizer(model, tx, wrt=nnx.Param, graph=True) and "
                "nnx.jit(train_step, graph=True, graph_updates=True), or nnx.set_graph_mode(True)."
            ) from error
        self.skipped = nnx.OptState(jnp.zeros((), jnp.uint32))
        self.dynamic_scale: Any = None
        if dynamic_scale is not None:
            arrays = loss_scale.with_array_fields(dynamic_scale)
            self.dynamic_scale = nnx.data(jax.tree.map(nnx.OptState, arrays))
        _copy_shared_arrays(model, self)


def _copy_shared_arrays(model: Any, optimizer: Any) -> None:
    """Give each Variable of the model and the optimizer arrays of its own."""
    state = nnx.state((model, optimizer), **GRAPH)
    copied = without_shared_buffers(state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(copied), strict=True)
    if any(old is not new for old, new in pairs):
        nnx.update((model, optimizer), copied)
