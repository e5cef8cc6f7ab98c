"""Trains one method from one seed, by a Python loop over a compiled training step.

This is not a `lax.scan`, in which XLA's convolutions are several times slower on a CPU, and not a
`vmap` over seeds, under which `flatreg.every` could not skip gradients. From the same seed, all
methods start from the same parameters and see the same batches and dropout keys.
"""

import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import augmentation
from benchmarks.common.methods import MOMENTUM, Method, learning_rates
from benchmarks.common.models import convolution
from benchmarks.common.options import Options
from flatreg.linen import TrainState, classification_loss, make_train_step

State = TypeVar("State")
Init = Callable[[jax.Array], TrainState]


class Program(NamedTuple):
    """The compiled training of one method, which serves all seeds.

    Attributes:
      init: makes the initial state from a key.
      step: makes a training step: (state, order, x, y) to (state, loss). It donates the state.
      steps: the number of training steps.
      steps_per_epoch: the number of steps in one pass over the training set.
    """

    init: Init
    step: Callable[..., tuple[TrainState, jax.Array]]
    steps: int
    steps_per_epoch: int


class Epoch(NamedTuple, Generic[State]):
    """The end of an epoch.

    Attributes:
      state: the training state. It is donated to the next epoch, so use it before that begins.
      steps: the number of steps of this epoch.
      seconds: how long they took.
      train_loss: the mean loss of their batches.
    """

    state: State
    steps: int
    seconds: float
    train_loss: float


def training_steps(method: Method, options: Options, examples: int) -> int:
    """Returns the number of training steps of a method.

    With `--budget gradients`, it is the largest number (but at least 1) whose gradient evaluations
    do not exceed those of the plain optimizer.

    Args:
      method: the method.
      options: the options of the comparison.
      examples: the number of training examples.
    """
    plain = options.epochs * (examples // options.batch_size)
    if options.budget == "gradients":
        return max(1, int(plain / method.cost))
    return plain


def build(
    method: Method, model: nn.Module, options: Options, x: jax.Array, y: jax.Array
) -> Program:
    """Compiles the training of a method on inputs shaped like `x` with labels shaped like `y`."""
    steps_per_epoch = len(x) // options.batch_size
    total = training_steps(method, options, len(x))
    rates = learning_rates(options.learning_rate, options.warmup_epochs / options.epochs, total)
    tx = optax.chain(method.transform, _base_optimizer(options, rates))
    train_step = make_train_step(classification_loss, ascent_fraction=method.ascent_fraction)
    example = x[:1]

    def step(
        state: TrainState, order: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        start = state.step % steps_per_epoch * options.batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, start, options.batch_size)
        inputs = x[batch]
        if options.augment:
            key = jax.random.fold_in(cast(jax.Array, state.key), state.step)
            key = jax.random.fold_in(key, augmentation.AUGMENTING)
            inputs = augmentation.crop_and_flip(key, inputs)
        state, metrics = train_step(state, (inputs, y[batch]))
        return state, metrics["loss"]

    def trace(model: nn.Module) -> tuple[Init, jax.stages.Traced]:
        init = jax.jit(lambda key: TrainState.init(model, tx, key, example, train=False))
        state, order = jax.eval_shape(init, jax.random.key(0)), jnp.zeros(len(x), jnp.int32)
        return init, jax.jit(step, donate_argnums=0).trace(state, order, x, y)

    init, traced = convolution.suited(trace, model.clone(dtype=jnp.dtype(options.dtype)))
    # Compile ahead of time, so that no measured epoch includes the compilation.
    return Program(init, traced.lower().compile(), total, steps_per_epoch)


def epochs(program: Program, seed: int, x: jax.Array, y: jax.Array) -> Iterator[Epoch[TrainState]]:
    """Trains from one seed and yields each epoch; the last one may be shorter.

    Args:
      program: the compiled training.
      seed: decides the initial parameters, the batches, dropout and augmentation.
      x: the training inputs.
      y: their labels.
    """
    state = program.init(jax.random.key(seed))
    for epoch in range(-(-program.steps // program.steps_per_epoch)):
        order = jnp.asarray(np.random.default_rng([seed, 2, epoch]).permutation(len(x)), jnp.int32)
        steps = min(program.steps_per_epoch, program.steps - epoch * program.steps_per_epoch)
        epoch_end = train_epoch(program.step, state, steps, order, x, y)
        yield epoch_end
        state = epoch_end.state


def train_epoch(
    step: Callable[..., tuple[State, jax.Array]],
    state: State,
    steps: int,
    order: jax.Array,
    x: jax.Array,
    y: jax.Array,
) -> Epoch[State]:
    """Takes the steps of one epoch and measures their time."""
    losses = []
    begin = time.perf_counter()
    for _ in range(steps):
        state, loss = step(state, order, x, y)
        losses.append(loss)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    return Epoch(state, steps, seconds, float(np.mean(jax.device_get(losses))))


def _base_optimizer(options: Options, rates: optax.Schedule) -> optax.GradientTransformation:
    if options.optimizer == "adamw":
        return optax.adamw(rates, weight_decay=options.weight_decay)
    # The decay comes after the method, so that no method perturbs along it.
    decay = optax.add_decayed_weights(options.weight_decay)
    return optax.chain(decay, optax.sgd(rates, momentum=MOMENTUM))
