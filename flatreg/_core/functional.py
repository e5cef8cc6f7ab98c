"""The gradient oracle of Functional-SAM: it perturbs the network, but not the loss of its outputs.

The loss is L(θ) = ℓ(F(θ)), and ∇L(θ′) = J_F(θ′)ᵀ ∇ℓ(F(θ′)). The functional oracle keeps the second
factor at the unperturbed parameters: θ′ ↦ J_F(θ′)ᵀ ∇ℓ(F(θ)).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flatreg._core.batches import (
    Args,
    Evaluate,
    PerPart,
    Roles,
    ShardedGradFn,
    ValueAndAux,
    contiguous,
    count_examples,
    interleaved,
    scan_parts,
    split,
    vmap_parts,
)
from flatreg._core.checks import check_differentiable
from flatreg._core.devices import AxisName, averaged, averaged_gradient, check_replicated
from flatreg._core.oracle import check_options, loss_and_aux, positions
from flatreg.typing import GradFn, Grads, Params

_FunctionalGradient: TypeAlias = Callable[[Params, tuple[Args, Any]], Grads]
"""``gradient(params, (args, cotangent))``, at other parameters than those of the cotangent."""


def functional_value_and_grad_fn(
    apply_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = 1,
    key_argnums: int | Sequence[int] | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[Any, Grads, GradFn]]:
    r"""Returns a function that computes the loss, its gradient and Functional-SAM's oracle.

    The loss is ``loss_fn(apply_fn(params, *args), *args)``: L(θ) = ℓ(F(θ)) with the network F and
    the loss ℓ of its outputs. The oracle is θ′ ↦ J_F(θ′)ᵀ ∇ℓ(F(θ)), where θ are the unperturbed
    parameters. At θ it is the gradient. With ``flatreg.sam(rho)``, the direction is
    J_F(θ + ρĝ)ᵀ ∇ℓ(F(θ)), which is Functional-SAM. Every other method works with this oracle
    unchanged: wherever it asks for the gradient at another point, it gets the functional one.

    This function takes the place of :func:`flatreg.value_and_grad_fn` and has the same options,
    except for ``ascent_fraction``: the oracle needs the outputs of the whole batch at θ.

    Args:
      apply_fn: the network, ``apply_fn(params, *args, **kwargs) -> outputs``. The outputs are any
        tree. They may contain new BatchNorm statistics, which ``loss_fn`` can return as aux.
      loss_fn: the loss of the outputs, ``loss_fn(outputs, *args, **kwargs) -> scalar``, or
        ``-> (scalar, aux)`` with ``has_aux``. It gets the same ``args`` as ``apply_fn``.
      has_aux: whether ``loss_fn`` also returns auxiliary data.
      batch_argnums: which positional arguments have the examples along the leading axis of their
        leaves. Argument 0 is ``params`` (and the outputs, in ``loss_fn``).
      key_argnums: which positional arguments are random keys; None if no argument is. Microbatch or
        shard i gets ``jax.random.fold_in(key, i)``, the same in every pass.
      microbatches: the number k ≥ 1 of microbatches, which are evaluated one after another. The
        gradient ∇ℓ at the outputs is stored for the whole batch.
      shards: the number m ≥ 1 of shards for :func:`flatreg.per_shard`; None if the batch is to be
        perturbed as a whole.
      axis_name: the axis of ``jax.pmap`` or ``jax.shard_map`` over which the batch is divided, or a
        tuple of such axes; None elsewhere.

    Returns:
      A function ``f(params, *args, **kwargs) -> value, grads, grad_fn``, like that of
      :func:`flatreg.value_and_grad_fn`. A call of the oracle costs one gradient.

    Raises:
      ValueError: if an option or an argument number is out of range; if a batch cannot be split
        into equal parts; if the axis ``axis_name`` does not exist, or the parameters vary over it.
      TypeError: if the loss returns a tuple without ``has_aux``, or if a leaf of ``params`` is not
        an array of floating-point numbers.

    Examples:
      >>> import jax.numpy as jnp, optax, flatreg
      >>> apply_fn = lambda w, batch: jnp.tanh(batch[0] @ w)
      >>> loss_fn = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)
      >>> w, batch = jnp.ones(2), (jnp.eye(4, 2), jnp.zeros(4))
      >>> tx = optax.chain(flatreg.sam(0.5), optax.sgd(0.1))
      >>> evaluate = flatreg.functional_value_and_grad_fn(apply_fn, loss_fn)
      >>> loss, grads, grad_fn = evaluate(w, batch)
      >>> updates, opt_state = tx.update(grads, tx.init(w), w, grad_fn=grad_fn)
      >>> print(bool(jnp.allclose(grad_fn(w), grads)))
      True

    References:
      Singh et al., `Avoiding spurious sharpness minimization broadens applicability of SAM
      <https://arxiv.org/abs/2502.02407>`_, 2025.
    """
    roles = Roles(positions(batch_argnums), positions(key_argnums))
    check_options(roles, microbatches, shards, 1.0, axis_name)

    def clean_pass_and_oracle(
        params: Params, *args: Any, **kwargs: Any
    ) -> tuple[Any, Grads, GradFn]:
        check_differentiable("functional_value_and_grad_fn", params)
        network = functools.partial(_network, functools.partial(apply_fn, **kwargs))
        loss = functools.partial(loss_fn, **kwargs)

        def clean(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
            """L(θ), its gradient, and in aux the cotangent ∇ℓ(F(θ))."""
            outputs, pull_back, rest = jax.vjp(lambda p: network(p, args), params, has_aux=True)

            def loss_of(floating: Any) -> ValueAndAux:
                out = loss(_joined(floating, rest), *args)
                call = "functional_value_and_grad_fn(apply_fn, loss_fn, has_aux=True)"
                return loss_and_aux(out, has_aux, call)

            (value, aux), cotangent = jax.value_and_grad(loss_of, has_aux=True)(outputs)
            return (value, (aux, PerPart(cotangent))), pull_back(cotangent)[0]

        def functional(params: Params, args_and_cotangent: tuple[Args, Any]) -> Grads:
            """J_F(θ′)ᵀ ∇ℓ(F(θ))."""
            args, cotangent = args_and_cotangent
            _, pull_back, _ = jax.vjp(lambda p: network(p, args), params, has_aux=True)
            grads: Grads = pull_back(cotangent)[0]
            return grads

        if microbatches > 1:
            evaluate, oracle = _in_microbatches(clean, functional, roles, microbatches)
        else:
            evaluate, oracle = clean, functional
        if axis_name is not None:
            check_replicated(params, axis_name)
            evaluate = averaged(evaluate, axis_name)
            oracle = averaged_gradient(oracle, axis_name)
        if shards is None:
            (value, (aux, per_part)), grads = evaluate(params, args)
            grad_fn: GradFn = lambda params: oracle(params, (args, per_part.value))  # noqa: E731
        else:
            count_examples(roles, args, shards)
            parts, args_of = split(roles, args, shards, contiguous)
            (value, (aux, per_part)), grads, of_loss = vmap_parts(evaluate, params, parts, args_of)

            def on_shard(part: Any) -> GradFn:
                return lambda params: oracle(params, (args_of(part[0]), part[1]))

            both: Any = (parts, per_part.value)
            grad_fn = ShardedGradFn(both, of_loss.grads, on_shard)
        return ((value, aux) if has_aux else value), grads, grad_fn

    return clean_pass_and_oracle


def _in_microbatches(
    clean: Evaluate, functional: _FunctionalGradient, roles: Roles, count: int
) -> tuple[Evaluate, _FunctionalGradient]:
    """The means of both passes over microbatches. Each microbatch has its own cotangent."""

    def evaluate(params: Params, args: Args) -> tuple[ValueAndAux, Grads]:
        count_examples(roles, args, count)
        return scan_parts(clean, params, *split(roles, args, count, interleaved))

    def oracle(params: Params, args_and_cotangents: tuple[Args, Any]) -> Grads:
        args, cotangents = args_and_cotangents
        parts, args_of = split(roles, args, count, interleaved)
        one: Any = lambda params, args: ((None, None), functional(params, args))  # noqa: E731
        both: Any = (parts, cotangents)
        args_of_both: Any = lambda part: (args_of(part[0]), part[1])  # noqa: E731
        return scan_parts(one, params, both, args_of_both)[1]

    return evaluate, oracle


def _network(apply_fn: Callable[..., Any], params: Params, args: Args) -> tuple[Any, Any]:
    """The outputs that can be differentiated, and the other ones, in trees with None elsewhere."""
    outputs = apply_fn(params, *args)
    is_floating = jax.tree.map(lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact), outputs)
    floating = jax.tree.map(lambda x, keep: x if keep else None, outputs, is_floating)
    return floating, jax.tree.map(lambda x, drop: None if drop else x, outputs, is_floating)


def _joined(floating: Any, rest: Any) -> Any:
    """The tree of all outputs."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, floating, rest, is_leaf=lambda x: x is None
    )
