"""Trains several methods side by side: one epoch of each method in turn, in a new order each time.

Each epoch of a method thus has an epoch of plain training next to it, on the same batches and under
the same load of the machine. The ratio of their times compares the two programs only.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.training import train_epoch
from benchmarks.lipschitz.methods import Parts, cross_entropies
from benchmarks.lipschitz.options import LipschitzOptions


class TrainingState(NamedTuple):
    """The state of a network in training.

    Attributes:
      params: the parameters that the optimizer updates.
      normalization: the state of `Parts.normalize`.
      optimizer: the state of the optimizer.
      step: the number of steps so far.
    """

    params: Any
    normalization: Any
    optimizer: Any
    step: jax.Array


class CompiledMethod(NamedTuple):
    """The compiled functions of one method, the same for all seeds.

    Attributes:
      init: returns the first state, given a key.
      step: `step(state, order, x, y)` returns the next state and the loss without penalties. The
        state is donated.
      weights: returns the parameters that the network uses in a state.
    """

    init: Callable[[jax.Array], TrainingState]
    step: Callable[..., tuple[TrainingState, jax.Array]]
    weights: Callable[[TrainingState], Any]


class Round(NamedTuple):
    """One epoch of every method.

    Attributes:
      seconds: the time per step of each method.
      losses: the mean loss of each method, without penalties.
    """

    seconds: dict[str, float]
    losses: dict[str, float]


def compiled(
    parts: Parts,
    init_params: Callable[[jax.Array], Any],
    logits: Callable[[Any, jax.Array], jax.Array],
    options: LipschitzOptions,
    x: jax.Array,
    y: jax.Array,
) -> CompiledMethod:
    """Compiles the training step of one method.

    Args:
      parts: what the method adds to the step.
      init_params: returns the parameters of the network, given a key.
      logits: `logits(params, x)`, the network.
      options: the learning rate, the batch size and the number of epochs.
      x: all training examples.
      y: their labels.
    """
    steps_per_epoch = len(x) // options.batch_size
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * steps_per_epoch)
    tx = optax.chain(parts.before, optax.sgd(schedule, momentum=0.9), parts.after)

    def init(key: jax.Array) -> TrainingState:
        params = init_params(key)
        normalization = parts.start(params, jax.random.fold_in(key, 1))
        return TrainingState(params, normalization, tx.init(params), jnp.zeros((), jnp.int32))

    def step(
        state: TrainingState, order: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[TrainingState, jax.Array]:
        first = state.step % steps_per_epoch * options.batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, first, options.batch_size)
        x, y = x[batch], y[batch]

        def objective(params: Any) -> tuple[jax.Array, Any]:
            weights, normalization = parts.normalize(params, state.normalization)

            def f(x: jax.Array) -> jax.Array:
                return logits(weights, x)

            loss = cross_entropies(f(x), y).mean()
            return loss + parts.penalty(f, x, y), (loss, normalization)

        grads, (loss, normalization) = jax.grad(objective, has_aux=True)(state.params)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainingState(params, normalization, optimizer, state.step + 1), loss

    state, order = jax.eval_shape(init, jax.random.key(0)), jnp.zeros(len(x), jnp.int32)
    # Compiled ahead of time, so that no measured epoch contains the compilation.
    compiled_step = jax.jit(step, donate_argnums=0).lower(state, order, x, y).compile()
    weights = jax.jit(lambda state: parts.normalize(state.params, state.normalization)[0])
    return CompiledMethod(init, compiled_step, weights)


def rounds(
    methods: dict[str, CompiledMethod],
    states: dict[str, TrainingState],
    seed: int,
    options: LipschitzOptions,
    x: jax.Array,
    y: jax.Array,
) -> Iterator[Round]:
    """Trains all methods from one seed and yields after each round.

    Args:
      methods: the compiled methods, by label.
      states: an empty dictionary, which holds the state of each method after each round.
      seed: decides the first parameters, the batches and the order of the methods.
      options: the number of epochs and the batch size.
      x: all training examples.
      y: their labels.
    """
    steps = len(x) // options.batch_size
    for label, method in methods.items():
        states[label] = method.init(jax.random.key(seed))
    for epoch in range(options.epochs):
        rng = np.random.default_rng([seed, 2, epoch])
        order = jnp.asarray(rng.permutation(len(x)), jnp.int32)
        seconds, losses = {}, {}
        for label in rng.permutation(list(methods)).tolist():
            epoch_end = train_epoch(methods[label].step, states[label], steps, order, x, y)
            states[label] = epoch_end.state
            seconds[label] = epoch_end.seconds / steps
            losses[label] = epoch_end.train_loss
        yield Round(seconds, losses)
