"""The clean pass and the gradient oracle of an NNX model, for a stock ``nnx.Optimizer``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flatreg._core import oracle
from flatreg._core.batches import Roles, count_examples
from flatreg._core.devices import AxisName
from flatreg.nnx._dropout_counts import advance_counts
from flatreg.nnx._nodes import PassChanges, run_on_copies, update_nodes, without_nodes
from flatreg.nnx._variables import (
    GRAPH,
    ModelChanges,
    SplitModel,
    copied,
    split_model,
    split_nodes,
    with_changes,
)
from flatreg.typing import GradFn, Grads, Params


def value_and_grad_fn(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = 1,
    key_argnums: int | Sequence[int] | None = None,
    wrt: Any = nnx.Param,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[Any, Grads, GradFn]]:
    r"""Returns a function that computes the loss of a model, its gradient and a gradient oracle.

    This is :func:`flatreg.value_and_grad_fn` for NNX. It replaces ``nnx.value_and_grad`` in a train
    step of your own, and ``grad_fn`` goes to ``nnx.Optimizer.update``::

        loss, grads, grad_fn = flatreg.nnx.value_and_grad_fn(loss_fn)(model, batch)
        optimizer.update(model, grads, grad_fn=grad_fn)

    The function runs a copy of the model. Then it writes what this clean pass changed to the model:
    BatchNorm statistics, dropout counts (``nnx.RngCount``) and all other Variables that are not
    trained, once per call. The oracle starts every pass from the Variables before the call, so all
    passes have the same dropout masks, and it changes no Variable. Other NNX objects among the
    arguments, such as ``nnx.Rngs``, are treated in the same way. :func:`make_train_step` does the
    same, and also skips steps that are not finite and supports loss scaling.

    Args:
      loss_fn: ``loss_fn(model, *args, **kwargs) -> scalar``, or ``-> (scalar, aux)`` with
        ``has_aux``. ``model`` is a copy of the model, in the same mode. The loss may change the
        Variables of the model, but it must not create or remove any.
      has_aux: whether the loss also returns auxiliary data.
      batch_argnums: the positional arguments whose leaves have the examples as their leading axis.
        Argument 0 is the model, so for ``loss_fn(model, x, y)`` they are ``(1, 2)``.
      key_argnums: the positional arguments that are random keys. Microbatch or shard i gets
        ``jax.random.fold_in(key, i)``, the same in every pass.
      wrt: the filter that selects the Variables to train. It must be the ``wrt`` of the optimizer.
      microbatches: the number k ≥ 1 of microbatches, which are evaluated one after another with the
        memory of one. The number of a microbatch is folded into every ``nnx.RngKey`` of the model.
        Floating-point aux and Variables are averaged, and all others come from the last microbatch.
      shards: the number m ≥ 1 of shards for :func:`flatreg.per_shard`, or None. The number of a
        shard's first example is folded into every ``nnx.RngKey``. Aux and Variables are combined as
        for ``microbatches``.
      ascent_fraction: the fraction of the examples, in (0, 1], that the clean pass uses; see
        :func:`flatreg.value_and_grad_fn`. BatchNorm statistics come from these examples.
      axis_name: the axis of ``pmap`` or ``shard_map`` over which everything is averaged, including
        floating-point Variables; see :func:`flatreg.value_and_grad_fn`. The index of the device is
        folded into every ``nnx.RngKey``, so devices have different dropout masks.

    Returns:
      A function ``f(model, *args, **kwargs) -> value, grads, grad_fn``. It returns ``value``
      (``(value, aux)`` with ``has_aux``), the gradient as an ``nnx.State``, as ``nnx.grad`` returns
      it, and the oracle, which maps a tree of parameters to a gradient of the same structure. ``f``
      updates the model in place, so call it inside ``nnx.jit``, not ``jax.jit``.

    Raises:
      ValueError: if an option or an argument number is out of range; if a batch cannot be split
        into equal parts; if ``wrt`` selects no Variable; if the loss creates Variables.
      TypeError: if the loss returns a tuple without ``has_aux``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> from flax import nnx
      >>> from flatreg.nnx import value_and_grad_fn
      >>> model = nnx.Sequential(
      ...     nnx.Linear(2, 8, rngs=nnx.Rngs(0)),
      ...     nnx.BatchNorm(8, rngs=nnx.Rngs(1)),
      ...     nnx.Dropout(0.1, rngs=nnx.Rngs(2)),
      ...     nnx.Linear(8, 1, rngs=nnx.Rngs(3)),
      ... )
      >>> tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> def loss_fn(model, x, y):
      ...     return jnp.mean((model(x)[:, 0] - y) ** 2)
      >>> @nnx.jit
      ... def train_step(model, optimizer, x, y):
      ...     loss, grads, grad_fn = value_and_grad_fn(loss_fn)(model, x, y)
      ...     optimizer.update(model, grads, grad_fn=grad_fn)
      ...     return loss
      >>> loss = train_step(model, optimizer, jnp.ones((4, 2)), jnp.ones(4))
      >>> print(model.layers[2].rngs.count[...])  # one mask, although SAM runs two passes
      1
    """
    batches = batch_argnums if isinstance(batch_argnums, Sequence) else (batch_argnums,)
    options: dict[str, Any] = {
        "has_aux": True,
        "key_argnums": key_argnums,
        "microbatches": microbatches,
        "shards": shards,
        "ascent_fraction": ascent_fraction,
        "axis_name": axis_name,
    }
    # This checks the options before the first call.
    oracle.value_and_grad_fn(loss_fn, batch_argnums=batch_argnums, **options)
    roles = Roles(oracle.positions(batch_argnums), oracle.positions(key_argnums))
    parts = microbatches * (shards or 1)

    def clean_pass_and_oracle(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, Grads, GradFn]:
        before = _snapshot(split_model(model, wrt))
        further = without_nodes(args, kwargs)
        nodes_before = _snapshot(split_nodes(further.nodes))
        numbers = None
        if parts > 1 or ascent_fraction < 1:
            # 0, 1, …: one number per example, which tells the parts of a divided batch apart.
            examples = jnp.arange(count_examples(roles, further.args, parts))
            numbers = examples if parts > 1 else None

        def loss_and_changes(
            params: Params, *args_and_numbers: Any
        ) -> tuple[jax.Array, tuple[Any, PassChanges]]:
            """One pass as a pure function of the parameters; it runs a copy of the model."""
            *args, numbers, unchanged, nodes = args_and_numbers
            start = unchanged._replace(params=params)
            arguments = further._replace(args=tuple(args))
            out, changes = run_on_copies(loss_fn, start, nodes, arguments, numbers, axis_name)
            loss, aux = oracle.loss_and_aux(out, has_aux)
            return loss, (aux, changes)

        evaluate = oracle.value_and_grad_fn(
            loss_and_changes, batch_argnums=(*batches, len(args) + 1), **options
        )
        (value, (aux, changes)), grads, grad_fn = evaluate(
            *(before.params, *further.args, numbers, before, nodes_before)
        )
        _write_changes(model, before, changes.model)
        update_nodes(further.nodes, nodes_before, changes.nodes, keep=True)
        return ((value, aux) if has_aux else value), _as_state(grads, model, wrt), grad_fn

    return clean_pass_and_oracle


def _snapshot(model: SplitModel) -> SplitModel:
    """The same parts with Variables of their own, which stay as they are when the model changes."""
    rng_state, variables = copied((model.rng_state, model.variables))
    return model._replace(rng_state=rng_state, variables=variables)


def _as_state(grads: Grads, model: Any, wrt: Any) -> Any:
    """The gradient in Variables of the types that are trained, which the optimizer selects."""
    state = nnx.state(model, nnx.All(wrt), **GRAPH)
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(grads))


def _write_changes(model: Any, before: SplitModel, changes: ModelChanges) -> None:
    """Writes what the clean pass changed to the model."""
    rng_state = advance_counts(before.rng_state, changes.rng_state)
    nnx.update(model, rng_state, with_changes(before.variables, changes.variables, keep=True))
