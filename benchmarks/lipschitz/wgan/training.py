"""A Wasserstein GAN on eight Gaussians in the plane, its critic bounded in three ways.

By Kantorovich and Rubinstein a critic f of Lipschitz constant L proves, of any two samples,
(mean f(x) − mean f(x̃))/L ≤ W₁, and the best critic attains it. Here W₁ between two minibatches is
known, by the assignment of least cost, so that each critic's estimate can be held against it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from benchmarks.common.models import build as _models
from benchmarks.lipschitz.methods import KINDS, Parts
from flatreg import lipschitz

BATCH, CRITIC_STEPS, MEASURED = 256, 5, 512  # examples; steps a generator's; of the exact W₁
LATENT, SPREAD = 4, 0.05
HIDDEN = (64, 64)
GENERATOR = _models.Mlp(HIDDEN, 2)


class Critic(NamedTuple):
    """What holds its Lipschitz constant near 1: a weight of the gradient penalty, or parts."""

    penalty: float
    parts: Parts


CRITICS = {
    "gradient penalty": Critic(10.0, Parts()),  # as in arXiv 1704.00028
    "spectral normalization": Critic(0.0, KINDS["spectral_normalization"].parts(1.0, None)),
    "projection, upper bound": Critic(0.0, KINDS["projection_upper_bound"].parts(1.0, None)),
}


class State(NamedTuple):
    """Of both networks."""

    critic: Any
    normalization: Any
    critic_optimizer: Any
    generator: Any
    generator_optimizer: Any


class Program(NamedTuple):
    """One kind of critic, compiled."""

    init: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], State]
    critic: Callable[[State], Any]


def real(key: jax.Array, count: int) -> jax.Array:
    """Eight Gaussians on a circle of radius 2."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (count,), 0, 8) * (jnp.pi / 4)
    center = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    return center + SPREAD * jax.random.normal(noise, (count, 2))


def fake(generator: Any, key: jax.Array, count: int) -> jax.Array:
    """Points of the generator."""
    noise = jax.random.normal(key, (count, LATENT))
    return jnp.asarray(GENERATOR.apply({"params": generator}, noise, train=False))


def value(critic: Any, x: jax.Array) -> jax.Array:
    """f(x), (batch,).

    |·| between the layers is 1-Lipschitz and keeps the norm of the gradient, which GELU and ReLU
    shrink, so that under a bound on each kernel the critic stays flat (arXiv 1811.05381).
    """
    *hidden, last = critic
    for layer in hidden:
        x = jnp.abs(x @ layer["kernel"] + layer["bias"])
    return jnp.ravel(x @ last["kernel"] + last["bias"])


def new_critic(key: jax.Array) -> list[dict[str, jax.Array]]:
    """Its layers."""
    sizes = (2, *HIDDEN, 1)
    draw = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": draw(k, (n, m)), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


@jax.jit
def networks(key: jax.Array) -> tuple[Any, Any]:
    """A new critic and a new generator."""
    keys: Any = jax.random.split(key)
    generator = GENERATOR.init(keys[1], jnp.zeros((1, LATENT)), train=False)["params"]
    return new_critic(keys[0]), generator


def compiled(kind: Critic) -> Program:
    """The programs of one kind of critic."""
    parts = kind.parts
    adam = optax.adam(1e-3, b1=0.5, b2=0.9)
    tx = optax.chain(parts.before, adam, parts.after)

    def init(key: jax.Array) -> State:
        critic, generator = networks(key)
        start = parts.start(critic, jax.random.fold_in(key, 1))
        return State(critic, start, tx.init(critic), generator, adam.init(generator))

    def critic_step(state: State, key: jax.Array) -> tuple[State, None]:
        keys = jax.random.split(key, 3)
        x, made = real(keys[0], BATCH), fake(state.generator, keys[1], BATCH)

        def loss(critic: Any) -> tuple[jax.Array, Any]:
            critic, normalization = parts.normalize(critic, state.normalization)
            apart = value(critic, made).mean() - value(critic, x).mean()
            if kind.penalty:
                apart += kind.penalty * lipschitz.interpolated_gradient_penalty(
                    lambda x: value(critic, x), x, made, keys[2]
                )
            return apart, normalization

        grads, normalization = jax.grad(loss, has_aux=True)(state.critic)
        updates, optimizer = tx.update(grads, state.critic_optimizer, state.critic)
        critic = optax.apply_updates(state.critic, updates)
        return State(critic, normalization, optimizer, *state[3:]), None

    def step(state: State, key: jax.Array) -> State:
        keys = jax.random.split(key, CRITIC_STEPS + 1)
        state, _ = jax.lax.scan(critic_step, state, keys[1:])
        critic, _ = parts.normalize(state.critic, state.normalization)
        grads = jax.grad(lambda g: -value(critic, fake(g, keys[0], BATCH)).mean())(state.generator)
        updates, optimizer = adam.update(grads, state.generator_optimizer)
        return State(*state[:3], optax.apply_updates(state.generator, updates), optimizer)

    key = jax.random.key(0)
    state = jax.eval_shape(init, key)
    compiled_step = jax.jit(step, donate_argnums=0).lower(state, key).compile()
    critic = jax.jit(lambda state: parts.normalize(state.critic, state.normalization)[0])
    return Program(init, compiled_step, critic)


@jax.jit
def measure(critic: Any, generator: Any, key: jax.Array) -> dict[str, Any]:
    """Two minibatches, how far apart the critic sees them, and its Lipschitz interval."""
    keys = jax.random.split(key, 3)
    x, made = real(keys[0], MEASURED), fake(generator, keys[1], MEASURED)
    upper = lipschitz.lipschitz_bound(value, critic, x).upper
    starts = jnp.concatenate([x[:8], made[:8]])
    lower = lipschitz.lipschitz_lower_bound(value, critic, starts, keys[2]).lower
    apart = value(critic, x).mean() - value(critic, made).mean()
    return {"real": x, "fake": made, "apart": apart, "lower": lower, "upper": upper}


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """W₁ between two samples of one size, exactly: the assignment of least mean distance."""
    distances = cdist(x, y)
    return float(distances[linear_sum_assignment(distances)].mean())


def distances(found: dict[str, Any]) -> dict[str, float]:
    """What `measure` found as numbers, with the exact W₁ and what the critic proves of it."""
    numbers = {name: float(found[name]) for name in ("apart", "lower", "upper")}
    exact = wasserstein(found["real"], found["fake"])
    return numbers | {"certified": numbers["apart"] / numbers["upper"], "exact": exact}
