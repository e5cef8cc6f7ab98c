"""What a trained network is: how often right, provably so, under noise, and how steep."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.data import Dataset
from benchmarks.lipschitz.options import Options
from benchmarks.lipschitz.training import Network
from flatreg import lipschitz

STARTS, ASCENT = 16, 100  # points, and steps, of the search for the steepest input
DRAWS = 10  # of the noise
CURVE = 60  # radii that the plot shows, up to twice the largest of the table
SETTINGS = {"starts": STARTS, "ascent_steps": ASCENT, "noise_draws": DRAWS}


def curve_radii(options: Options) -> np.ndarray:
    """Where the plot's curves are measured."""
    return np.linspace(0, 2 * options.radii[-1], CURVE + 1)


def measurer(network: Network, data: Dataset, options: Options) -> Callable[[Any], dict[str, Any]]:
    """Compiles the measurement of the network's parameters, the same for every method."""
    curve, table = curve_radii(options), np.array(options.radii)

    @jax.jit
    def measure(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        bound = lipschitz.lipschitz_bound(network.transparent_logits, params, x[:1])

        def f(x: jax.Array) -> jax.Array:
            return network.logits(params, x)

        def noisy_accuracy(key: jax.Array) -> jax.Array:
            noisy = x + options.noise * jax.random.normal(key, x.shape)
            return jnp.mean(f(noisy).argmax(1) == y)

        logits = f(x)
        lower = lipschitz.lipschitz_lower_bound(
            network.logits, params, x[:STARTS], keys[0], steps=ASCENT
        ).lower

        def certified(constant: Any, radii: np.ndarray) -> jax.Array:
            return lipschitz.certified_accuracy(logits, y, constant, jnp.asarray(radii))

        return {
            "accuracy": jnp.mean(logits.argmax(1) == y),
            "lower": lower,
            "upper": bound.upper,
            "certified": certified(bound.pairs, table),
            "certified_plainly": certified(bound.upper, table),  # by √2 times the constant
            "noise_accuracy": jnp.mean(
                jax.lax.map(noisy_accuracy, jax.random.split(keys[1], DRAWS))
            ),
            "curve": certified(bound.pairs, curve),
            "layers": bound.layers,
        }

    x, y = jnp.asarray(data.x_test), jnp.asarray(data.y_test)

    def run(params: Any) -> dict[str, Any]:
        # The network whose bounds these are: no accelerator may round its products.
        with jax.default_matmul_precision("highest"):
            found = jax.device_get(measure(params, x, y, jax.random.key(0)))
        found = jax.tree.map(lambda value: np.asarray(value, np.float64).tolist(), found)
        return dict(found)

    return run
