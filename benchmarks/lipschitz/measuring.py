"""Measures a trained network: accuracy, certified accuracy, accuracy under noise, steepness."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg import lipschitz

STARTS, ASCENT = 16, 100  # starting points and steps of the search for the steepest input
DRAWS = 10  # of the noise
SETTINGS = {"starts": STARTS, "ascent_steps": ASCENT, "noise_draws": DRAWS}

Logits = Callable[[Any, jax.Array], jax.Array]


def measurer(
    logits: Logits,
    transparent_logits: Logits,
    x: Any,
    y: Any,
    *,
    radii: Any,
    curve_radii: Any,
    noise: float,
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function that measures a network, given its parameters.

    It is compiled once and serves all methods. Its results are floats and lists of floats:

        accuracy            the share of correct predictions
        noise_accuracy      the same under noise on the inputs
        lower, upper        an interval for the Lipschitz constant of the logits in the 2-norm
        certified           certified accuracy at `radii`, by the bounds of pairs of logits
        certified_plainly   the same, by √2 times the Lipschitz constant
        curve               as `certified`, at `curve_radii`

    Args:
      logits: `logits(params, x)`, the network.
      transparent_logits: the same function in a form that `flatreg.lipschitz` can bound.
      x: the examples for the evaluation.
      y: their labels.
      radii: the radii of the table.
      curve_radii: the radii of the figure.
      noise: the standard deviation of the noise on each input.
    """

    @jax.jit
    def measure(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        bound = lipschitz.lipschitz_bound(transparent_logits, params, x[:1])
        clean = logits(params, x)

        def noisy_accuracy(key: jax.Array) -> jax.Array:
            noisy = x + noise * jax.random.normal(key, x.shape)
            return jnp.mean(logits(params, noisy).argmax(1) == y)

        def certified(constant: Any, radii: Any) -> jax.Array:
            return lipschitz.certified_accuracy(clean, y, constant, jnp.asarray(radii))

        lower = lipschitz.lipschitz_lower_bound(logits, params, x[:STARTS], keys[0], steps=ASCENT)
        return {
            "accuracy": jnp.mean(clean.argmax(1) == y),
            "lower": lower.lower,
            "upper": bound.upper,
            "certified": certified(bound.pairs, np.array(radii)),
            "certified_plainly": certified(bound.upper, np.array(radii)),
            "noise_accuracy": jnp.mean(
                jax.lax.map(noisy_accuracy, jax.random.split(keys[1], DRAWS))
            ),
            "curve": certified(bound.pairs, curve_radii),
        }

    x, y = jnp.asarray(x), jnp.asarray(y)

    def run(params: Any) -> dict[str, Any]:
        # The bounds hold for exact products, so that no accelerator may round the factors.
        with jax.default_matmul_precision("highest"):
            found = jax.device_get(measure(params, x, y, jax.random.key(0)))
        found = jax.tree.map(lambda value: np.asarray(value, np.float64).tolist(), found)
        return dict(found)

    return run
