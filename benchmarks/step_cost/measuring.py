"""Compiles the training steps that `python -m benchmarks.step_cost` compares, and times them.

Every method runs through `flatreg.linen.make_train_step`. What it is held against is written by
hand in plain JAX, Flax and Optax: one gradient step, and SAM by `optax.contrib.sam`.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import quantile_test  # type: ignore[import-untyped]

from benchmarks.common import methods as _methods
from benchmarks.common.methods import METHODS, Method
from flatreg.linen import TrainState, classification_loss, make_train_step

GRADIENT, OPTAX_SAM = "one gradient, by hand", "optax.contrib.sam"
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": partial(optax.sgd, 0.05, momentum=0.9),
    "adamw": partial(optax.adamw, 1e-3),
}
# What JAX_DISABLE_MOST_OPTIMIZATIONS asks XLA for: programs that compile fast.
UNOPTIMIZED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SHORTEST = 0.02  # seconds a timing takes at least, by repeated steps

Batch = tuple[jax.Array, jax.Array]
Step = Callable[[Any, Batch], tuple[Any, Any]]
Run = Callable[[int], None]  # so many steps, waited for


class Contestant(NamedTuple):
    """A training step, ready to run; `gradients` is what it takes at least, its floor."""

    name: str
    gradients: float
    run: Run
    analysis: dict[str, float]  # of XLA


class Interval(NamedTuple):
    """A median and its 95% interval by order statistics; NaN of fewer than six."""

    median: float
    low: float
    high: float


def methods(specs: Sequence[str], optimizer: str) -> list[Method]:
    """Methods as `benchmarks.compare` names them, or a bare name of the registry, to be tried."""
    bare = {
        name: Method(name, entry.factory(**entry.hyperparameters), entry.gradients, 1.0)
        for name, entry in METHODS.items()
    }
    return [bare[s] if s in bare else _methods.parse(s, optimizer)[0] for s in specs]


def contestants(
    model: nn.Module, batch: Batch, optimizer: str, specs: Sequence[str], optimized: bool
) -> list[Contestant]:
    """The gradient step by hand first; flatreg's without a method; the methods; Optax's SAM."""
    base = OPTIMIZERS[optimizer]()
    compiled = partial(_compiled, batch=batch, options={} if optimized else UNOPTIMIZED)
    init = jax.jit(partial(model.init, train=False))
    variables = init(jax.random.key(0), batch[0][:1])
    ascent = optax.chain(
        optax.contrib.normalize(), optax.sgd(METHODS["sam"].hyperparameters["rho"])
    )
    sam = optax.contrib.sam(OPTIMIZERS[optimizer](), ascent, opaque_mode=True)

    def by_hand(name: str, gradients: float, tx: optax.GradientTransformation) -> Contestant:
        return Contestant(name, gradients, *compiled(*_by_hand(model, tx, variables)))

    def by_flatreg(method: Method) -> Contestant:
        state = TrainState.create(
            apply_fn=model.apply,
            params=_copy(variables["params"]),
            batch_stats=_copy(variables.get("batch_stats", {})),
            tx=optax.chain(method.transform, base),
            key=jax.random.key(1),
        )
        step = make_train_step(classification_loss, ascent_fraction=method.ascent_fraction)
        return Contestant(method.label, method.cost, *compiled(step, state))

    return [
        by_hand(GRADIENT, 1, base),
        by_flatreg(Method(optimizer, optax.identity(), 1, 1.0)),
        *map(by_flatreg, methods(specs, optimizer)),
        by_hand(OPTAX_SAM, 2, sam),
    ]


def _by_hand(
    model: nn.Module, tx: optax.GradientTransformation, variables: Any
) -> tuple[Step, Any]:
    """The step that one would write without flatreg, and its first state."""
    tx = optax.with_extra_args_support(tx)
    params, key = variables["params"], jax.random.key(1)
    statistics = {name: value for name, value in variables.items() if name != "params"}

    def step(state: Any, batch: Batch) -> tuple[Any, Any]:
        params, statistics, opt_state, count = state
        x, labels = batch

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, new = model.apply(
                {"params": params, **statistics},
                x,
                train=True,
                rngs={"dropout": jax.random.fold_in(key, count)},
                mutable=list(statistics),
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (new, jnp.mean(logits.argmax(-1) == labels))

        (loss, (new, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)

        def grad_fn(params: Any, _: Any) -> Any:
            return jax.grad(loss_fn, has_aux=True)(params)[0]

        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        state = optax.apply_updates(params, updates), new, opt_state, count + 1
        return state, {"loss": loss, "accuracy": accuracy}

    return step, _copy((params, statistics, tx.init(params), jnp.zeros((), jnp.int32)))


def _copy(tree: Any) -> Any:
    """Every state is donated, so each has its own arrays."""
    return jax.tree.map(jnp.copy, tree)


def _compiled(
    step: Step, state: Any, batch: Batch, options: dict[str, Any]
) -> tuple[Run, dict[str, float]]:
    begin = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced = time.perf_counter()
    program = lowered.compile(options)
    analysis = {
        "trace_seconds": traced - begin,
        "compile_seconds": time.perf_counter() - traced,
        "flops": (program.cost_analysis() or {}).get("flops", math.nan),
        "temporary_bytes": getattr(program.memory_analysis(), "temp_size_in_bytes", math.nan),
    }

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = program(state, batch)
        jax.block_until_ready(state)

    return run, analysis


def in_turns(rows: Sequence[Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each, once a round; each round begins with another one."""
    for row in rows:
        row.run(2)  # what the first steps do besides
    begin = time.perf_counter()
    rows[0].run(1)
    steps = min(1000, math.ceil(SHORTEST / (time.perf_counter() - begin)))
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    for i in range(rounds):
        first = i % len(rows)
        for row in [*rows[first:], *rows[:first]]:
            begin = time.perf_counter()
            row.run(steps)
            seconds[row.name].append((time.perf_counter() - begin) / steps)
    return seconds


def ratio(seconds: Sequence[float], others: Sequence[float]) -> Interval:
    """Of two that ran side by side, over the rounds."""
    ratios = np.divide(seconds, others)
    found = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Interval(float(np.median(ratios)), float(found.low), float(found.high))
