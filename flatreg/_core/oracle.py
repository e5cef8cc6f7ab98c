"""One clean pass and the oracle that goes with it: value, aux, gradient and ``grad_fn``.

``value_and_grad_fn`` is :func:`jax.value_and_grad` with a third output: the oracle θ ↦ ∇L(θ) of
the same loss, on the same batch, with the same dropout key. Value and aux (metrics, BatchNorm
statistics) come from the clean pass alone; what the oracle's passes produce beside the gradient
is dropped.
"""

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
from flatreg.typing import GradFn, Grads, Params


def value_and_grad_fn(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = 1,
    key_argnums: int | Sequence[int] | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    ascent_fraction: float = 1.0,
) -> Callable[..., tuple[Any, Grads, GradFn]]:
    r"""Makes ``f(params, *args, **kwargs) -> value, grads, grad_fn`` of a loss.

    With ``k = microbatches`` every pass, clean or shifted, is a ``lax.scan`` over k microbatches:
    L = (1/k) Σᵢ Lᵢ, exact for a loss that is a mean over examples, with the memory of one
    microbatch. Microbatch i takes the examples i, i+k, i+2k, …, as :func:`optax.microbatch` does,
    so that a batch which is sharded over devices stays so. With ``m = shards`` the batch falls into
    m contiguous parts, evaluated side by side, which :func:`flatreg.per_shard` perturbs one by one.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, ``(scalar, aux)`` with ``has_aux``.
      has_aux: whether the loss also returns auxiliary data.
      batch_argnums: the positional arguments whose leaves have the examples as their leading axis
        (0 is ``params``); for ``loss_fn(params, x, y)`` they are ``(1, 2)``. No other argument is
        taken apart.
      key_argnums: the positional arguments that are random keys. Microbatch or shard i gets
        ``jax.random.fold_in(key, i)``, the same in every pass.
      microbatches: k ≥ 1. In aux, floating-point leaves are averaged and all others come from the
        last microbatch. Each microbatch starts from the same BatchNorm statistics. For exact
        Hessian-vector products take ``hvp=flatreg.forward_hvp``, which stores no residuals.
      shards: m ≥ 1, or None where nothing is to be perturbed apart; aux as for ``microbatches``.
      ascent_fraction: in (0, 1]. Below 1, value, aux and gradient come from the first
        ``round(ascent_fraction * n)`` of n examples (at least one; with microbatches, up to what
        they share equally) and ``grad_fn`` from all of them. :func:`flatreg.sam` uses the clean
        gradient only for its direction, so a step costs 1 + ascent_fraction gradients instead of
        2. It is for ``sam`` and ``asam``: methods that add the clean gradient itself stay right in
        expectation only, off-steps of :func:`flatreg.every`, ``after`` and ``randomly`` train on
        the fraction alone, and :func:`flatreg.gam_accelerated`, which takes the clean gradient from
        a shifted one, climbs along the difference of the examples. Metrics and BatchNorm statistics
        are the fraction's. Of a batch that is sharded over devices the first examples are on the
        first devices, so they are moved between them; over the axes of an Explicit mesh they must
        be a multiple of the devices.

    Returns:
      The function, which returns ``value`` (``(value, aux)`` with ``has_aux``), the gradient in the
      parameters' dtypes, and ``grad_fn``, for ``tx.update(..., grad_fn=grad_fn)``.

    Raises:
      ValueError: if the sizes do not divide, an argument number is out of range, or an option is.
      TypeError: if the loss returns a tuple without ``has_aux``.

    Examples:
      >>> import jax.numpy as jnp, optax, flatreg
      >>> def loss_fn(w, batch):
      ...     x, y = batch
      ...     return jnp.mean((x @ w - y) ** 2)
      >>> w, batch = jnp.ones(2), (jnp.eye(4, 2), jnp.zeros(4))
      >>> loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, microbatches=2)(w, batch)
      >>> print(loss, grads, grad_fn(2 * w))
      0.5 [0.5 0.5] [1. 1.]

      With the parts of the batch as arguments of their own:

      >>> def loss_fn(w, x, y):
      ...     return jnp.mean((x @ w - y) ** 2)
      >>> f = flatreg.value_and_grad_fn(loss_fn, batch_argnums=(1, 2), microbatches=2)
      >>> loss, grads, grad_fn = f(w, *batch)
      >>> print(grads)
      [0.5 0.5]
    """
    roles = Roles(_argnums(batch_argnums), _argnums(key_argnums))
    _check_options(roles, microbatches, shards, ascent_fraction)

    def clean_pass_and_oracle(
        params: Params, *args: Any, **kwargs: Any
    ) -> tuple[Any, Grads, GradFn]:
        grad_fn: GradFn
        value_and_grad = _value_and_grad(functools.partial(loss_fn, **kwargs), has_aux)
        evaluate = evaluate_clean = _microbatched(value_and_grad, roles, microbatches)
        if ascent_fraction < 1:
            evaluate_clean = _on_fraction(value_and_grad, roles, microbatches, ascent_fraction)
        if shards is not None:
            count_examples(roles, args, shards)
            parts, args_of = split(roles, args, shards, contiguous)
            (value, aux), grads, grad_fn = vmap_parts(evaluate, params, parts, args_of)
        else:
            (value, aux), grads = evaluate_clean(params, args)
            grad_fn = lambda params: evaluate(params, args)[1]  # noqa: E731
        return ((value, aux) if has_aux else value), grads, grad_fn

    return clean_pass_and_oracle


def _value_and_grad(loss_fn: Callable[..., Any], has_aux: bool) -> Evaluate:
    def loss_and_aux(params: Params, args: Args) -> ValueAndAux:
        out = loss_fn(params, *args)
        if isinstance(out, tuple) and not has_aux:
            raise TypeError(
                "the loss returns a tuple: write value_and_grad_fn(loss_fn, has_aux=True), which "
                "takes it for (loss, aux)."
            )
        return out if has_aux else (out, None)

    return jax.value_and_grad(loss_and_aux, has_aux=True)


def _microbatched(evaluate: Evaluate, roles: Roles, count: int) -> Evaluate:
    """The mean over ``count`` microbatches."""

    def run(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        count_examples(roles, args, count)
        return scan_parts(evaluate, params, *split(roles, args, count, interleaved))

    return evaluate if count == 1 else run


def _on_fraction(evaluate: Evaluate, roles: Roles, microbatches: int, fraction: float) -> Evaluate:
    """A pass over the first examples, in no larger microbatches than the whole batch's."""

    def run(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        examples = count_examples(roles, args, microbatches)
        wanted = max(1, round(fraction * examples))
        count = math.ceil(wanted * microbatches / examples)
        size = math.ceil(wanted / count)
        if size % (devices := explicit_devices(roles, args)):
            whole = devices if microbatches == 1 else examples // microbatches
            nearest = max(1, round(wanted / whole)) * whole / examples
            raise ValueError(
                f"ascent_fraction={fraction} has the clean pass take {size} examples at a time, "
                f"which {devices} devices of an Explicit mesh cannot share equally: write "
                f"ascent_fraction={nearest}."
            )
        first = take_first(roles, args, count * size)
        if microbatches == 1:
            return evaluate(params, first)
        return scan_parts(evaluate, params, *split(roles, first, count, interleaved))

    return run


def _argnums(argnums: int | Sequence[int] | None) -> tuple[int, ...]:
    """Argument numbers of the loss as places in ``args``."""
    if argnums is None:
        return ()
    argnums = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(i, int | np.integer) and i >= 1 for i in argnums):
        raise ValueError(
            f"argument numbers must be whole and at least 1, got {argnums}: 0 is params, so for "
            "loss_fn(params, batch, key) write batch_argnums=1, key_argnums=2."
        )
    return tuple(int(i) - 1 for i in argnums)


def _check_options(
    roles: Roles, microbatches: int, shards: int | None, ascent_fraction: float
) -> None:
    counts = {"microbatches": microbatches, "shards": 1 if shards is None else shards}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}: 4, say.")
    if not 0 < ascent_fraction <= 1:
        raise ValueError(f"ascent_fraction must lie in (0, 1], got {ascent_fraction}: 0.1, say.")
    if shards is not None and ascent_fraction < 1:
        raise ValueError(
            "shards and ascent_fraction exclude each other, for every shard needs its own "
            "gradient: leave one of them out."
        )
    if set(roles.batches) & set(roles.keys):
        raise ValueError("an argument stands in batch_argnums and in key_argnums: name it in one.")
