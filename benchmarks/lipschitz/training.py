"""Trains several methods side by side: every method an epoch, in a new order, and again.

So that each epoch of a method has one of the plain network beside it, on the same batches, under
the same load of the machine, and the ratio of their times is that of the two programs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import Dataset
from benchmarks.common.models import convolution as _convolution
from benchmarks.common.models.build import Mlp, build
from benchmarks.lipschitz.methods import Method, cross_entropies
from benchmarks.lipschitz.options import Options
from flatreg import lipschitz


class Cnn(nn.Module):
    """Strided convolutions with GELU and a dense layer, without BatchNorm and pooling."""

    channels: Sequence[int]
    num_classes: int
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits; `train` makes no difference here."""
        del train
        for width in self.channels:
            x = nn.gelu(nn.Conv(width, (3, 3), 2, conv_general_dilated=self.convolve)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Network(NamedTuple):
    """A model, and the same one built with XLA's convolution, by which bounds know it."""

    model: nn.Module
    transparent: nn.Module
    init: Callable[[jax.Array], Any]

    def logits(self, params: Any, x: jax.Array) -> jax.Array:
        """What it answers."""
        return jnp.asarray(self.model.apply({"params": params}, x, train=False))

    def transparent_logits(self, params: Any, x: jax.Array) -> jax.Array:
        """The same, to be traced."""
        return jnp.asarray(self.transparent.apply({"params": params}, x, train=False))


class Program(NamedTuple):
    """A method compiled; it serves all seeds."""

    init: Callable[[jax.Array], Any]
    step: Callable[..., Any]
    weights: Callable[[Any], Any]


class State(NamedTuple):
    """Of a network that is trained."""

    params: Any
    normalization: Any
    optimizer: Any
    step: jax.Array


class Round(NamedTuple):
    """One epoch of every method: its seconds a step, and its mean loss without penalties."""

    seconds: dict[str, float]
    losses: dict[str, float]


def network(name: str, data: Dataset) -> Network:
    """The network `name`, `mlp` or `cnn`, in a size that suits the data."""
    model = transparent = build(name, data)  # checks that a CNN gets images
    if not isinstance(model, Mlp):
        transparent = Cnn((32, 64), data.num_classes)
        on_cpu = jax.default_backend() == "cpu"
        model = transparent.clone(convolve=_convolution.by_patches) if on_cpu else transparent
    example = jnp.asarray(data.x_train[:1])
    init = jax.jit(lambda key: transparent.init(key, example, train=False)["params"])
    return Network(model, transparent, init)


def compiled(method: Method, of: Network, options: Options, x: jax.Array, y: jax.Array) -> Program:
    """Compiles the training step of a method for the training examples x with labels y."""
    steps_an_epoch = len(x) // options.batch_size
    key, example = jax.random.key(0), x[:1]
    abstract = jax.eval_shape(of.init, key)
    parts = method.parts(lipschitz.linear_maps(of.transparent_logits, abstract, example))
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * steps_an_epoch)
    tx = optax.chain(parts.before, optax.sgd(schedule, momentum=0.9), parts.after)

    def init(key: jax.Array) -> State:
        params = of.init(key)
        start = parts.start(params, jax.random.fold_in(key, 1))
        return State(params, start, tx.init(params), jnp.zeros((), jnp.int32))

    def step(state: State, order: jax.Array, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        first = state.step % steps_an_epoch * options.batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, first, options.batch_size)
        x, y = x[batch], y[batch]

        def objective(params: Any) -> tuple[jax.Array, Any]:
            weights, normalization = parts.normalize(params, state.normalization)

            def f(x: jax.Array) -> jax.Array:
                return of.logits(weights, x)

            loss = cross_entropies(f(x), y).mean()
            return loss + parts.penalty(f, x, y), (loss, normalization)

        grads, (loss, normalization) = jax.grad(objective, has_aux=True)(state.params)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, normalization, optimizer, state.step + 1), loss

    state, order = jax.eval_shape(init, key), jnp.zeros(len(x), jnp.int32)
    # Compiled ahead of time, so that no measured epoch holds a compilation.
    program = jax.jit(step, donate_argnums=0).lower(state, order, x, y).compile()
    weights = jax.jit(lambda state: parts.normalize(state.params, state.normalization)[0])
    return Program(init, program, weights)


def rounds(
    programs: dict[str, Program],
    states: dict[str, State],
    seed: int,
    options: Options,
    x: jax.Array,
    y: jax.Array,
) -> Iterator[Round]:
    """Trains all methods from one seed; ``states`` is what they are after each round."""
    for name, program in programs.items():
        states[name] = program.init(jax.random.key(seed))
    for epoch in range(options.epochs):
        rng = np.random.default_rng([seed, 2, epoch])
        order = jnp.asarray(rng.permutation(len(x)), jnp.int32)
        seconds, losses = {}, {}
        for name in rng.permutation(list(programs)).tolist():
            seconds[name], losses[name], states[name] = _epoch(
                programs[name], states[name], order, options.batch_size, x, y
            )
        yield Round(seconds, losses)


def _epoch(
    program: Program, state: State, order: jax.Array, batch_size: int, x: jax.Array, y: jax.Array
) -> tuple[float, float, State]:
    losses = []
    steps = len(order) // batch_size
    begin = time.perf_counter()
    for _ in range(steps):
        state, loss = program.step(state, order, x, y)
        losses.append(loss)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    return seconds / steps, float(np.mean(jax.device_get(losses))), state
