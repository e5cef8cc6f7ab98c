"""Trains one method from one seed: a Python loop over one compiled, donated step.

A loop and not a scan, because XLA runs convolutions inside a scan several times slower on a CPU,
and because `flatreg.every` then really skips a gradient, which it cannot under a vmap over seeds.
All methods start a seed from the same parameters and take the same batches and dropout keys.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import augment as _augment
from benchmarks.common.methods import Method
from benchmarks.common.options import Options
from flatreg.linen import TrainState, classification_loss, make_train_step

AUGMENTING = 2**16  # folded into a step's key; call c of the model has c


class Program(NamedTuple):
    """One method with its recipe, compiled; it serves all seeds."""

    init: Callable[[jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, jax.Array]]
    steps: int
    steps_per_epoch: int


class Epoch(NamedTuple):
    """How an epoch ended. Its state is donated to the next one: use it before going on."""

    state: TrainState
    steps: int
    seconds: float
    train_loss: float


def training_steps(method: Method, options: Options, examples: int) -> int:
    """The training steps of a method on so many examples."""
    plain = options.epochs * (examples // options.batch_size)
    if options.budget == "gradients":  # as many as the plain method evaluates in its epochs
        return max(1, int(plain / method.cost))
    return plain


def build(
    method: Method, model: nn.Module, options: Options, x: jax.Array, y: jax.Array
) -> Program:
    """Compiles the training step of a method for the training examples x with labels y."""
    steps_per_epoch = len(x) // options.batch_size
    total = training_steps(method, options, len(x))
    warmup = int(options.warmup_epochs / options.epochs * total)
    tx = optax.chain(method.transform, _base_optimizer(options, total, warmup))
    train_step = make_train_step(classification_loss, ascent_fraction=method.ascent_fraction)
    example = x[:1]
    model = model.clone(dtype=jnp.dtype(options.dtype))

    def init(key: jax.Array) -> TrainState:
        return TrainState.init(model, tx, key, example, train=False)

    def step(
        state: TrainState, order: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        start = state.step % steps_per_epoch * options.batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, start, options.batch_size)
        inputs = x[batch]
        if options.augment:
            key = jax.random.fold_in(cast(jax.Array, state.key), state.step)
            key = jax.random.fold_in(key, AUGMENTING)
            inputs = _augment.crop_and_flip(key, inputs)
        state, metrics = train_step(state, (inputs, y[batch]))
        return state, metrics["loss"]

    init = jax.jit(init)
    state, order = jax.eval_shape(init, jax.random.key(0)), jnp.zeros(len(x), jnp.int32)
    # Compiled ahead of time, so that no measured epoch holds a compilation.
    compiled = jax.jit(step, donate_argnums=0).lower(state, order, x, y).compile()
    return Program(init, compiled, total, steps_per_epoch)


def epochs(program: Program, seed: int, x: jax.Array, y: jax.Array) -> Iterator[Epoch]:
    """Trains from one seed and yields after each epoch, of which the last may be shorter."""
    state = program.init(jax.random.key(seed))
    for epoch in range(-(-program.steps // program.steps_per_epoch)):
        order = jnp.asarray(np.random.default_rng([seed, 2, epoch]).permutation(len(x)), jnp.int32)
        steps = min(program.steps_per_epoch, program.steps - epoch * program.steps_per_epoch)
        losses = []
        begin = time.perf_counter()
        for _ in range(steps):
            state, loss = program.step(state, order, x, y)
            losses.append(loss)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begin
        yield Epoch(state, steps, seconds, float(np.mean(jax.device_get(losses))))


def _base_optimizer(options: Options, steps: int, warmup: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(options.learning_rate, steps)
    if warmup:
        schedule = optax.warmup_cosine_decay_schedule(0.0, options.learning_rate, warmup, steps)
    if options.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=options.weight_decay)
    # the decay joins the gradient behind the method, so that no method perturbs along it
    decay = optax.add_decayed_weights(options.weight_decay)
    return optax.chain(decay, optax.sgd(schedule, momentum=0.9))
