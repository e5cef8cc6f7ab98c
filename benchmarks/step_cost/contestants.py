"""The training steps that `python -m benchmarks.step_cost` compares, compiled.

Every method runs through `flatreg.linen.make_train_step`. The steps that they are compared with are
written by hand in plain JAX, Flax and Optax: one gradient step, and SAM by `optax.contrib.sam`.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.common.methods import METHODS, Method, parse
from benchmarks.common.models import convolution
from benchmarks.step_cost.timing import (
    GRADIENT,
    GUARDED_OPTAX_SAM,
    OPTAX_SAM,
    UNGUARDED_SAM,
    Contestant,
    Run,
)
from flatreg.linen import TrainState, classification_loss, make_train_step

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": partial(optax.sgd, 0.05, momentum=0.9),
    "adamw": partial(optax.adamw, 1e-3),
}
# The same as JAX_DISABLE_MOST_OPTIMIZATIONS: programs that compile fast.
UNOPTIMIZED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Batch = tuple[jax.Array, jax.Array]
Step = Callable[[Any, Batch], tuple[Any, Any]]


class HandwrittenState(NamedTuple):
    """The state of a step by hand.

    Attributes:
      step: the number of steps so far.
      params: the parameters.
      statistics: the other collections of variables, such as those of BatchNorm.
      opt_state: the state of the optimizer.
    """

    step: jax.Array
    params: Any
    statistics: Any
    opt_state: Any


def methods(specs: Sequence[str], optimizer: str) -> list[Method]:
    """Reads methods as `benchmarks.compare` names them.

    A name of the registry without settings stands for the method with typical hyperparameters.
    """
    bare = {
        name: Method(name, entry.factory(**values), entry.cost(values), 1.0)
        for name, entry in METHODS.items()
        for values in (entry.hyperparameters,)
    }
    return [bare[s] if s in bare else parse(s, optimizer)[0] for s in specs]


def contestants(
    model: nn.Module, batch: Batch, optimizer: str, specs: Sequence[str], optimized: bool
) -> list[Contestant]:
    """Compiles all steps of one network and optimizer.

    Args:
      model: the network.
      batch: images and labels.
      optimizer: a name from `OPTIMIZERS`.
      specs: the methods.
      optimized: whether XLA optimizes the programs.

    Returns:
      The gradient step by hand, flatreg's step without a method, the methods, and Optax's SAM. If
      `sam` is among the methods, also flatreg's SAM without a test for NaN and infinity, and
      Optax's with one.
    """
    return [make() for make in makers(model, batch, optimizer, specs, optimized).values()]


def makers(
    model: nn.Module, batch: Batch, optimizer: str, specs: Sequence[str], optimized: bool
) -> dict[str, Callable[[], Contestant]]:
    """Returns a function per step that compiles it, by the names of the steps.

    The arguments and the order of the steps are those of `contestants`.
    """
    base = OPTIMIZERS[optimizer]()
    no_method = optax.with_extra_args_support(optax.identity())
    compiled = partial(
        _compiled, model=model, batch=batch, options={} if optimized else UNOPTIMIZED
    )
    init = jax.jit(partial(model.init, train=False))
    variables = init(jax.random.key(0), batch[0][:1])
    ascent = optax.chain(
        optax.contrib.normalize(), optax.sgd(METHODS["sam"].hyperparameters["rho"])
    )
    optax_sam = optax.contrib.sam(OPTIMIZERS[optimizer](), ascent, opaque_mode=True)

    def by_hand(name: str, gradients: float, tx: optax.GradientTransformation) -> Contestant:
        return Contestant(name, gradients, *compiled(partial(_by_hand, tx, variables)))

    def by_flatreg(method: Method, name: str, **options: Any) -> Contestant:
        def problem(model: nn.Module) -> tuple[Step, TrainState]:
            state = TrainState.create(
                apply_fn=model.apply,
                params=_copy(variables["params"]),
                batch_stats=_copy(variables.get("batch_stats", {})),
                tx=optax.chain(method.transform, base),
                key=jax.random.key(1),
            )
            fraction = method.ascent_fraction
            return make_train_step(classification_loss, ascent_fraction=fraction, **options), state

        return Contestant(name, method.cost, *compiled(problem))

    plain = Method(optimizer, no_method, 1, 1.0)
    own = {one.label: one for one in (plain, *methods(specs, optimizer))}
    made: dict[str, Callable[[], Contestant]] = {
        GRADIENT: partial(by_hand, GRADIENT, 1, base),
        **{label: partial(by_flatreg, one, label) for label, one in own.items()},
        OPTAX_SAM: partial(by_hand, OPTAX_SAM, 2, optax_sam),
    }
    if "sam" in own:
        guarded = optax.apply_if_finite(optax_sam, max_consecutive_errors=5)
        made[UNGUARDED_SAM] = partial(by_flatreg, own["sam"], UNGUARDED_SAM, skip_nonfinite=False)
        made[GUARDED_OPTAX_SAM] = partial(by_hand, GUARDED_OPTAX_SAM, 2, guarded)
    return made


def _by_hand(
    tx: optax.GradientTransformation, variables: Any, model: nn.Module
) -> tuple[Step, Any]:
    """Returns the step that one would write without flatreg, and its first state."""
    tx = optax.with_extra_args_support(tx)
    params, key = variables["params"], jax.random.key(1)
    statistics = {name: value for name, value in variables.items() if name != "params"}

    def step(state: HandwrittenState, batch: Batch) -> tuple[HandwrittenState, Any]:
        number, params, statistics, opt_state = state
        x, labels = batch

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, new = model.apply(
                {"params": params, **statistics},
                x,
                train=True,
                rngs={"dropout": jax.random.fold_in(key, number)},
                mutable=list(statistics),
            )
            logits = logits.astype(jnp.float32)  # as in flatreg's loss
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (new, jnp.mean(logits.argmax(-1) == labels))

        (loss, (new, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)

        def grad_fn(params: Any, _: Any) -> Any:
            return jax.grad(loss_fn, has_aux=True)(params)[0]

        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        state = HandwrittenState(number + 1, optax.apply_updates(params, updates), new, opt_state)
        return state, {"loss": loss, "accuracy": accuracy}

    state = HandwrittenState(jnp.zeros((), jnp.int32), params, statistics, tx.init(params))
    return step, _copy(state)


def _copy(tree: Any) -> Any:
    """Copies the arrays, because every contestant donates its own state."""
    return jax.tree.map(jnp.copy, tree)


class _Traced(NamedTuple):
    """The first state of a traced step, and when tracing began and ended."""

    state: Any
    begin: float
    end: float


def _compiled(
    problem: Callable[[nn.Module], tuple[Step, Any]],
    model: nn.Module,
    batch: Batch,
    options: dict[str, Any],
) -> tuple[Run, dict[str, float]]:
    """Compiles a step; returns how to run it, and what compiling took and XLA reports.

    Args:
      problem: returns the step for a network, and its first state.
      model: the network.
      batch: images and labels.
      options: the options of the compiler.
    """

    def trace(model: nn.Module) -> tuple[_Traced, jax.stages.Traced]:
        step, state = problem(model)
        begin = time.perf_counter()
        traced = jax.jit(step, donate_argnums=0).trace(state, batch)
        return _Traced(state, begin, time.perf_counter()), traced

    (state, begin, end), traced = convolution.suited(trace, model)
    lowering = time.perf_counter()
    lowered = traced.lower()
    compiling = time.perf_counter()
    program = lowered.compile(options)
    analysis = {
        "trace_seconds": end - begin + compiling - lowering,
        "compile_seconds": time.perf_counter() - compiling,
        "flops": (program.cost_analysis() or {}).get("flops", math.nan),
        "kernels": (program.as_text() or "").count(" fusion("),
        "temporary_bytes": getattr(program.memory_analysis(), "temp_size_in_bytes", math.nan),
    }

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = program(state, batch)
        jax.block_until_ready(state)

    return run, analysis
