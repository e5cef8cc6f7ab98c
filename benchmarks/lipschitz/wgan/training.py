"""Wasserstein GANs for eight Gaussians in the plane, with three ways to bound the critic.

By the Kantorovich–Rubinstein duality, a critic f with the Lipschitz constant L proves for any two
samples that (mean f(x) − mean f(x̃))/L ≤ W₁, and the best critic attains equality. The exact W₁
between two minibatches is known here, from an assignment of minimal cost, so that the estimate of
each critic can be compared with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from benchmarks.common.models.mlp import Mlp
from benchmarks.lipschitz.methods import METHODS, Parts
from flatreg import lipschitz

BATCH = 256  # examples per step
CRITIC_STEPS = 5  # per step of the generator
MEASURED = 512  # examples of the minibatches whose exact W₁ is computed
LATENT, SPREAD = 4, 0.05
HIDDEN = (64, 64)
GENERATOR = Mlp(HIDDEN, 2)


class Critic(NamedTuple):
    """A way to keep the Lipschitz constant of a critic near 1.

    Attributes:
      penalty: the weight of the gradient penalty, or 0.
      parts: what is added to the training step.
    """

    penalty: float
    parts: Parts


CRITICS = {
    "gradient penalty": Critic(10.0, Parts()),  # as in arXiv 1704.00028
    "spectral normalization": Critic(0.0, METHODS["spectral_normalization"].parts(1.0, None)),
    "projection, upper bound": Critic(0.0, METHODS["projection_upper_bound"].parts(1.0, None)),
}


class GanState(NamedTuple):
    """The states of the critic and of the generator in training.

    Attributes:
      critic: the parameters of the critic.
      normalization: the state of `Parts.normalize`.
      critic_optimizer: the state of the critic's optimizer.
      generator: the parameters of the generator.
      generator_optimizer: the state of the generator's optimizer.
    """

    critic: Any
    normalization: Any
    critic_optimizer: Any
    generator: Any
    generator_optimizer: Any


class CompiledGan(NamedTuple):
    """The compiled functions for one critic.

    Attributes:
      init: returns the first state, given a key.
      step: `step(state, key)` returns the state after one step of the generator and the steps of
        the critic before it. The state is donated.
      critic: returns the parameters that the critic uses in a state.
    """

    init: Callable[[jax.Array], GanState]
    step: Callable[[GanState, jax.Array], GanState]
    critic: Callable[[GanState], Any]


def real(key: jax.Array, count: int) -> jax.Array:
    """Draws from a mixture of eight Gaussians, whose centers lie on a circle of radius 2."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (count,), 0, 8) * (jnp.pi / 4)
    center = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    return center + SPREAD * jax.random.normal(noise, (count, 2))


def fake(generator: Any, key: jax.Array, count: int) -> jax.Array:
    """Draws points from the generator."""
    noise = jax.random.normal(key, (count, LATENT))
    return jnp.asarray(GENERATOR.apply({"params": generator}, noise, train=False))


def value(critic: Any, x: jax.Array) -> jax.Array:
    """Returns the critic's values f(x), of shape (batch,).

    The activation is the absolute value, which is 1-Lipschitz and keeps the norm of the gradient.
    GELU and ReLU reduce this norm, so that a critic with a bound on each kernel would stay too flat
    (arXiv 1811.05381).
    """
    *hidden, last = critic
    for layer in hidden:
        x = jnp.abs(x @ layer["kernel"] + layer["bias"])
    return jnp.ravel(x @ last["kernel"] + last["bias"])


def new_critic(key: jax.Array) -> list[dict[str, jax.Array]]:
    """Returns the layers of a new critic."""
    sizes = (2, *HIDDEN, 1)
    draw = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": draw(k, (n, m)), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


@jax.jit
def networks(key: jax.Array) -> tuple[Any, Any]:
    """Returns the parameters of a new critic and of a new generator."""
    keys: Any = jax.random.split(key)
    generator = GENERATOR.init(keys[1], jnp.zeros((1, LATENT)), train=False)["params"]
    return new_critic(keys[0]), generator


def compiled(kind: Critic) -> CompiledGan:
    """Compiles the training step for one kind of critic."""
    parts = kind.parts
    adam = optax.adam(1e-3, b1=0.5, b2=0.9)
    tx = optax.chain(parts.before, adam, parts.after)

    def init(key: jax.Array) -> GanState:
        critic, generator = networks(key)
        start = parts.start(critic, jax.random.fold_in(key, 1))
        return GanState(critic, start, tx.init(critic), generator, adam.init(generator))

    def critic_step(state: GanState, key: jax.Array) -> tuple[GanState, None]:
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
        return GanState(critic, normalization, optimizer, *state[3:]), None

    def step(state: GanState, key: jax.Array) -> GanState:
        keys = jax.random.split(key, CRITIC_STEPS + 1)
        state, _ = jax.lax.scan(critic_step, state, keys[1:])
        critic, _ = parts.normalize(state.critic, state.normalization)
        grads = jax.grad(lambda g: -value(critic, fake(g, keys[0], BATCH)).mean())(state.generator)
        updates, optimizer = adam.update(grads, state.generator_optimizer)
        return GanState(*state[:3], optax.apply_updates(state.generator, updates), optimizer)

    key = jax.random.key(0)
    state = jax.eval_shape(init, key)
    compiled_step = jax.jit(step, donate_argnums=0).lower(state, key).compile()
    critic = jax.jit(lambda state: parts.normalize(state.critic, state.normalization)[0])
    return CompiledGan(init, compiled_step, critic)


@jax.jit
def measure(critic: Any, generator: Any, key: jax.Array) -> dict[str, Any]:
    """Draws a real and a generated minibatch and measures the critic on them.

    Returns a dictionary: `real` and `fake`, the minibatches; `apart`, the difference of the means
    of the critic; `lower` and `upper`, an interval for the Lipschitz constant of the critic.
    """
    keys = jax.random.split(key, 3)
    x, made = real(keys[0], MEASURED), fake(generator, keys[1], MEASURED)
    upper = lipschitz.lipschitz_bound(value, critic, x).upper
    starts = jnp.concatenate([x[:8], made[:8]])
    lower = lipschitz.lipschitz_lower_bound(value, critic, starts, keys[2]).lower
    apart = value(critic, x).mean() - value(critic, made).mean()
    return {"real": x, "fake": made, "apart": apart, "lower": lower, "upper": upper}


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the exact W₁ between two samples of equal size, by an assignment of minimal cost."""
    distances = cdist(x, y)
    return float(distances[linear_sum_assignment(distances)].mean())


def distances(found: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers that `measure` found, with two more.

    These are `exact`, the exact W₁, and `certified`, the lower bound on it that the critic proves.
    """
    numbers = {name: float(found[name]) for name in ("apart", "lower", "upper")}
    exact = wasserstein(found["real"], found["fake"])
    return numbers | {"certified": numbers["apart"] / numbers["upper"], "exact": exact}
