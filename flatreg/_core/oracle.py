"""The clean pass and the gradient oracle: value, aux, gradient and ``grad_fn`` of a loss.

``value_and_grad_fn`` is :func:`jax.value_and_grad` with a third output: the gradient oracle
θ ↦ ∇L(θ) of the same loss, on the same batch, with the same dropout key. The value and aux (for
example metrics and BatchNorm statistics) come only from the clean pass. The oracle returns the
gradient and discards everything else that its passes compute.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from flatreg._core.batches import (
    Args,
    Evaluate,
    Roles,
    ValueAndAux,
    contiguous,
    count_examples,
    explicit_devices,
    interleaved,
    scan_parts,
    split,
    take_first,
    vmap_parts,
)
from flatreg._core.checks import check_differentiable
from flatreg._core.devices import AxisName, averaged, check_axis_name, check_replicated
from flatreg.typing import GradFn, Grads, Params


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False makes it hashable for jax.jit
class OracleWithAux:
    """A gradient oracle that can also return the value and aux of its pass.

    Attributes:
      evaluate: the pass, ``params -> (value, aux), grads``.
    """

    evaluate: Callable[[Params], tuple[ValueAndAux, Grads]]

    def __call__(self, params: Params) -> Grads:
        """Returns ∇L(params)."""
        return self.evaluate(params)[1]


def value_and_grad_fn(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = 1,
    key_argnums: int | Sequence[int] | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[Any, Grads, GradFn]]:
    r"""Returns a function that computes the loss, its gradient and a gradient oracle.

    With ``k = microbatches``, every pass, clean or perturbed, is a ``lax.scan`` over k
    microbatches: L = (1/k) Σᵢ Lᵢ. This is exact for a loss that is a mean over examples, and it
    needs the memory of one microbatch. Microbatch i has the examples i, i+k, i+2k, …, as in
    :func:`optax.microbatch`, so that a batch that is sharded over devices stays sharded. With
    ``m = shards``, the batch is split into m contiguous parts, which are evaluated in parallel and
    which :func:`flatreg.per_shard` perturbs separately.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``-> (scalar, aux)`` with
        ``has_aux``.
      has_aux: whether the loss also returns auxiliary data.
      batch_argnums: which positional arguments have the examples along the leading axis of their
        leaves. Argument 0 is ``params``, so for ``loss_fn(params, x, y)`` write ``(1, 2)``. Only
        these arguments are split.
      key_argnums: which positional arguments are random keys; None if no argument is. Microbatch
        or shard i gets ``jax.random.fold_in(key, i)``, the same in every pass. Without
        ``microbatches`` and ``shards``, keys are passed as they are.
      microbatches: the number k ≥ 1 of microbatches. Floating-point leaves of aux are averaged, and
        all other leaves come from the last microbatch. Each microbatch starts from the same
        BatchNorm statistics. For exact Hessian-vector products use ``hvp=flatreg.forward_hvp``,
        which stores no residuals.
      shards: the number m ≥ 1 of shards for :func:`flatreg.per_shard`; None if the batch is to be
        perturbed as a whole. Floating-point leaves of aux are averaged over the shards, and all
        other leaves come from the last shard.
      ascent_fraction: the fraction of the examples, in (0, 1], that the clean pass uses. The oracle
        always uses all examples. Values below 1 make the ascent step of ``sam`` and ``asam``
        cheaper. The note below lists the conditions.
      axis_name: the axis of ``jax.pmap`` or ``jax.shard_map`` over which the batch is divided, or a
        tuple of such axes; None elsewhere, including ``jax.jit`` with sharded arrays. The loss, the
        gradient and every gradient of the oracle are averaged over the devices, and so are
        floating-point leaves of aux. Other leaves of aux stay the device's own. The parameters must
        be the same on all devices. Keys are used as they are passed: to draw different dropout
        masks on each device, pass ``jax.random.fold_in(key, jax.lax.axis_index(axis_name))``.
        Hessian-vector products are averaged too. Do not average the loss or the gradient yourself.

    Returns:
      A function ``f(params, *args, **kwargs) -> value, grads, grad_fn``. It returns the loss
      ``value`` (or the pair ``(value, aux)`` with ``has_aux``), the gradient in the parameters'
      dtypes, and the gradient oracle for ``tx.update(..., grad_fn=grad_fn)``.

    Raises:
      ValueError: if an option or an argument number is out of range; if a batch cannot be split
        into equal parts; if the axis ``axis_name`` does not exist, or the parameters vary over it.
      TypeError: if the loss returns a tuple without ``has_aux``, or if a leaf of ``params`` is not
        an array of floating-point numbers.

    Note:
      **A cheaper ascent.** With ``ascent_fraction < 1``, the value, aux and gradient come from the
      first ``round(ascent_fraction * n)`` of n examples, and ``grad_fn`` uses all n. At least one
      example is used. With microbatches, the number is rounded up so that all microbatches have the
      same size.
      :func:`flatreg.sam` uses the clean gradient only for its direction, so a step costs
      1 + ascent_fraction gradients instead of 2. This option is meant for ``sam`` and ``asam``:

      - Methods that add the clean gradient itself are correct only in expectation.
      - With :func:`flatreg.every`, ``after`` and ``randomly``, the steps without the method train
        on only this fraction of the batch.
      - :func:`flatreg.gam_accelerated` subtracts the clean gradient from a perturbed one, so it
        would ascend along the difference between the two sets of examples.
      - ``aux`` comes from this fraction of the batch, and so do BatchNorm statistics in it. The
        train steps of :mod:`flatreg.linen` and :mod:`flatreg.nnx` replace it by the aux of the
        perturbed pass, which uses the whole batch.
      - If the batch is sharded over devices, its first examples are on the first devices, so they
        are moved between devices. If the axes belong to an Explicit mesh, the number of these
        examples must be a multiple of the number of devices.

    Examples:
      >>> import jax.numpy as jnp, optax, flatreg
      >>> def loss_fn(w, batch):
      ...     x, y = batch
      ...     return jnp.mean((x @ w - y) ** 2)
      >>> w, batch = jnp.ones(2), (jnp.eye(4, 2), jnp.zeros(4))
      >>> loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, microbatches=2)(w, batch)
      >>> print(loss, grads, grad_fn(2 * w))
      0.5 [0.5 0.5] [1. 1.]

      With the parts of the batch as separate arguments:

      >>> def loss_fn(w, x, y):
      ...     return jnp.mean((x @ w - y) ** 2)
      >>> f = flatreg.value_and_grad_fn(loss_fn, batch_argnums=(1, 2), microbatches=2)
      >>> loss, grads, grad_fn = f(w, *batch)
      >>> print(grads)
      [0.5 0.5]
    """
    roles = Roles(positions(batch_argnums), positions(key_argnums))
    check_options(roles, microbatches, shards, ascent_fraction, axis_name)

    def clean_pass_and_oracle(
        params: Params, *args: Any, **kwargs: Any
    ) -> tuple[Any, Grads, GradFn]:
        check_differentiable("value_and_grad_fn", params)
        grad_fn: GradFn
        value_and_grad = _value_and_grad(functools.partial(loss_fn, **kwargs), has_aux)
        evaluate = evaluate_clean = _microbatched(value_and_grad, roles, microbatches)
        if ascent_fraction < 1:
            evaluate_clean = _on_fraction(value_and_grad, roles, microbatches, ascent_fraction)
        if axis_name is not None:
            check_replicated(params, axis_name)
            evaluate = averaged(evaluate, axis_name)
            evaluate_clean = averaged(evaluate_clean, axis_name)
        if shards is not None:
            count_examples(roles, args, shards)
            parts, args_of = split(roles, args, shards, contiguous)
            (value, aux), grads, grad_fn = vmap_parts(evaluate, params, parts, args_of)
        else:
            (value, aux), grads = evaluate_clean(params, args)
            grad_fn = OracleWithAux(lambda params: evaluate(params, args))
        return ((value, aux) if has_aux else value), grads, grad_fn

    return clean_pass_and_oracle


def _value_and_grad(loss_fn: Callable[..., Any], has_aux: bool) -> Evaluate:
    def evaluated(params: Params, args: Args) -> ValueAndAux:
        return loss_and_aux(loss_fn(params, *args), has_aux)

    return jax.value_and_grad(evaluated, has_aux=True)


def loss_and_aux(
    out: Any, has_aux: bool, call: str = "value_and_grad_fn(loss_fn, has_aux=True)"
) -> ValueAndAux:
    """What the loss returned, with None for aux without ``has_aux``; errors show ``call``."""
    if isinstance(out, tuple) and not has_aux:
        raise TypeError(f"the loss returns a tuple: write {call}, which expects (loss, aux).")
    return out if has_aux else (out, None)


def _microbatched(evaluate: Evaluate, roles: Roles, count: int) -> Evaluate:
    """The mean over ``count`` microbatches."""

    def run(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        count_examples(roles, args, count)
        return scan_parts(evaluate, params, *split(roles, args, count, interleaved))

    return evaluate if count == 1 else run


def _on_fraction(evaluate: Evaluate, roles: Roles, microbatches: int, fraction: float) -> Evaluate:
    """A pass over the first examples, in microbatches no larger than those of the whole batch."""

    def run(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        examples = count_examples(roles, args, microbatches)
        wanted = max(1, round(fraction * examples))
        count = math.ceil(wanted * microbatches / examples)
        size = math.ceil(wanted / count)
        if size % (devices := explicit_devices(roles, args)):
            whole = devices if microbatches == 1 else examples // microbatches
            nearest = max(1, round(wanted / whole)) * whole / examples
            raise ValueError(
                f"with ascent_fraction={fraction} the clean pass takes {size} examples at a time, "
                f"which cannot be split equally over {devices} devices of an Explicit mesh: write "
                f"ascent_fraction={nearest}."
            )
        first = take_first(roles, args, count * size)
        if microbatches == 1:
            return evaluate(params, first)
        return scan_parts(evaluate, params, *split(roles, first, count, interleaved))

    return run


def positions(argnums: int | Sequence[int] | None) -> tuple[int, ...]:
    """Converts argument numbers of the loss to positions in ``args``."""
    if argnums is None:
        return ()
    argnums = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(i, int | np.integer) and i >= 1 for i in argnums):
        raise ValueError(
            f"argument numbers must be integers of at least 1, got {argnums}: 0 is params, so for "
            "loss_fn(params, batch, key) write batch_argnums=1, key_argnums=2."
        )
    return tuple(int(i) - 1 for i in argnums)


def check_options(
    roles: Roles,
    microbatches: int,
    shards: int | None,
    ascent_fraction: float,
    axis_name: AxisName | None,
) -> None:
    """Checks the options of ``value_and_grad_fn`` before the first call of the loss."""
    counts = {"microbatches": microbatches, "shards": 1 if shards is None else shards}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {count!r}: for example, write "
                f"{name}=4."
            )
    if not 0 < ascent_fraction <= 1:
        raise ValueError(
            f"ascent_fraction must be in (0, 1], got {ascent_fraction}: for example, write "
            "ascent_fraction=0.1."
        )
    if shards is not None and ascent_fraction < 1:
        raise ValueError(
            "shards and ascent_fraction cannot be used together, because every shard needs its own "
            "gradient: remove one of them."
        )
    if axis_name is not None:
        check_axis_name(axis_name)
    if axis_name is not None and shards is not None:
        raise ValueError(
            "shards and axis_name cannot be used together, because each shard needs its own "
            "gradient. For one perturbation per device, use shards under jax.jit with a sharded "
            "batch and remove axis_name."
        )
    if set(roles.batches) & set(roles.keys):
        raise ValueError(
            "an argument is named in both batch_argnums and key_argnums: name it in one of them."
        )
