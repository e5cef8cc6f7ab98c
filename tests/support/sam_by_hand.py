"""A step of SAM computed by hand: directions, shards and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def sam_direction(params: Any, uphill: Any, oracle: Callable[[Any], Any], rho: float) -> Any:
    """The direction of SAM by hand: ∇L(θ + ρ u/‖u‖)."""
    return oracle(optax.tree.add_scale(params, rho / optax.tree.norm(uphill), uphill))


def mean_sam_direction(params: Any, oracles: list[Callable[[Any], Any]], rho: float) -> Any:
    """The mean of SAM's directions, each with the gradient and the oracle of one shard."""
    directions = [sam_direction(params, oracle(params), oracle, rho) for oracle in oracles]
    return jax.tree.map(lambda *d: sum(d) / len(oracles), *directions)


def parts_of(batch: tuple[Any, Any], count: int) -> list[tuple[Any, Any]]:
    """The contiguous parts of a batch."""
    x, labels = batch
    size = len(x) // count
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, len(x), size)]


def metrics_of_sam(loss: Any, accuracy: Any, g: Any, d: Any, rho: float) -> dict[str, Any]:
    """The metrics of a step of ``observe(sam(rho))`` with gradient g and direction d."""
    norms = optax.tree.norm(g), optax.tree.norm(d)
    return {
        "loss": loss,
        "accuracy": accuracy,
        "skipped": False,
        "grad_norm": norms[0],
        "direction_norm": norms[1],
        "perturbation_norm": rho,
        "cosine": optax.tree.vdot(g, d) / (norms[0] * norms[1]),
    }
