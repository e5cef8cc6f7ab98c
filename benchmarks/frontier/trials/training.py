"""Trains one trial: a whole training as one compiled loop with the hyperparameters as arguments.

One program per method serves every trial, seed and budget, because the number of steps, the order
of the batches, the hyperparameters and the labels are arguments. Trials run one at a time. Training
several at once by `vmap` is not faster on a CPU: per trial and step, the MLP on digits takes
0.37 ms of CPU time alone, 0.35 ms in a batch of 5 trials and 0.37 ms in a batch of 10, and the
program of a batch of 10 compiles three times as long.

Convolutions here must be matrix products (`benchmarks.common.models.convolution`), because XLA's
own are several times slower inside a loop on a CPU.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.data import augmentation
from benchmarks.frontier.trials.contender import Contender, Values, first_step, optimizer
from flatreg.linen import TrainState, classification_loss, make_train_step


class Recipe(NamedTuple):
    """What all methods of a frontier share.

    Attributes:
      model: the network.
      optimizer: `sgd` or `adamw`.
      batch_size: the number of examples per batch.
      warmup: the fraction of the steps in which the learning rate rises.
      augment: whether to crop and flip the training images at random.
      most_steps: the largest number of steps that a program is called with.
    """

    model: nn.Module
    optimizer: str
    batch_size: int
    warmup: float
    augment: bool
    most_steps: int


class Trained(NamedTuple):
    """The end of a training.

    Attributes:
      variables: the parameters and BatchNorm statistics to evaluate.
      diverged: whether a step was not finite.
      seconds: how long it took, without compilation.
    """

    variables: Any
    diverged: bool
    seconds: float


Program = Callable[[Values, int, int, jax.Array, jax.Array, int], Trained]


def build(contender: Contender, recipe: Recipe, x: jax.Array, y: jax.Array) -> Program:
    """Compiles the training of a method on inputs shaped like `x` with labels shaped like `y`.

    Returns:
      A function `train(values, steps, seed, x, y, examples)`, which trains on the first `examples`
      examples of `x`. The seed decides the initial parameters, the order of the batches, dropout
      and augmentation, in the same way for every method.
    """
    train_step = contender.train_step or make_train_step(
        classification_loss, ascent_fraction=contender.ascent_fraction
    )
    names = ("learning_rate", "weight_decay", *contender.tuned)

    def train(
        values: Values,
        key: jax.Array,
        order: jax.Array,
        steps: jax.Array,
        first: jax.Array,
        x: jax.Array,
        y: jax.Array,
    ) -> tuple[Any, jax.Array]:
        tx = optimizer(contender, recipe.optimizer, values, steps, first, recipe.warmup)
        state = TrainState.init(recipe.model, tx, key, x[:1], train=False)
        decay = jnp.exp(-1 / (values["horizon"] * steps)) if contender.averaging else 0.0

        def step(i: jax.Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, average = carry
            inputs = x[order[i]]
            if recipe.augment:
                key = jax.random.fold_in(cast(jax.Array, state.key), state.step)
                key = jax.random.fold_in(key, augmentation.AUGMENTING)
                inputs = augmentation.crop_and_flip(key, inputs)
            state, _ = train_step(state, (inputs, y[order[i]]))
            if contender.averaging:
                average = jax.tree.map(
                    lambda a, v: decay * a + (1 - decay) * v, average, state.variables
                )
            return state, average

        average = jax.tree.map(jnp.zeros_like, state.variables) if contender.averaging else None
        state, average = jax.lax.fori_loop(0, steps, step, (state, average))
        variables = state.variables
        if contender.averaging:  # removes the weight of the zeros that the average started from
            variables = jax.tree.map(lambda a: a / (1 - decay**steps), average)
        if contender.evaluated is not None:
            variables = {**variables, "params": contender.evaluated(state.opt_state, state.params)}
        return variables, state.skipped > 0

    number = jax.ShapeDtypeStruct((), jnp.float32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    shape = (recipe.most_steps, recipe.batch_size)
    compiled = (
        jax.jit(train)
        .lower(
            dict.fromkeys(names, number),
            jax.eval_shape(lambda: jax.random.key(0)),
            jax.ShapeDtypeStruct(shape, jnp.int32),
            count,
            count,
            x,
            y,
        )
        .compile()
    )

    def run(
        values: Values, steps: int, seed: int, x: jax.Array, y: jax.Array, examples: int
    ) -> Trained:
        order = np.zeros(shape, np.int32)
        order[:steps] = batches(contender, steps, seed, recipe.batch_size, examples)
        arguments = jax.block_until_ready(
            (
                {name: jnp.float32(values[name]) for name in names},
                jax.random.key(seed),
                jnp.asarray(order),
                jnp.int32(steps),
                jnp.int32(first_step(contender, steps)),
                x,
                y,
            )
        )
        begin = time.perf_counter()
        variables, skipped = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - begin
        leaves = jax.tree.leaves(variables)
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
        return Trained(variables, bool(skipped) or not finite, seconds)

    return run


def batches(
    contender: Contender, steps: int, seed: int, batch_size: int, examples: int
) -> np.ndarray:
    """Returns the examples of each batch, one row per step, in shuffled epochs of full batches."""
    per_epoch = examples // batch_size
    epochs = -(-steps // per_epoch)
    order = np.concatenate(
        [
            np.random.default_rng([seed, 2, epoch]).permutation(examples)[: per_epoch * batch_size]
            for epoch in range(epochs)
        ]
    ).reshape(-1, batch_size)
    if contender.arrange is not None:
        order = contender.arrange(order[:steps])
    return order[:steps]
