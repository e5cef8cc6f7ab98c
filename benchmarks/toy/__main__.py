"""PACGen's network of two weights: a sharp global optimum, a flat local one, and what bounds say.

    python -m benchmarks.toy

After the toy of Wang, Keskar, Xiong and Socher, 2018, arXiv 1809.07402: a network of 5 layers that
share their weights, two of which are free; sigmoids; samples of a mixture of 3 Gaussians with
labels split at a median; loss surface, metric and bound over the plane, predicted labels at the
sharp and at the flat optimum. The rest is our reading, for the paper gives no numbers:

1. W is 2 by 2, [[w₁, C], [0, w₂]] with a constant C, without biases, and four of the layers have a
   sigmoid; the fifth gives two logits for cross-entropy.
2. What is split at its median is the distance of a sample from the origin.
3. The bound is E L̂(w+u) + KL/√n for the uniform noise σ* that makes it smallest: Alquier, Ridgway
   and Chopin's linear PAC-Bayes bound (arXiv 1506.04091) less what is the same for all w. The prior
   is uniform over the plane. ρ is found from below, so that it is an estimate of the bound.
4. C, the seed and the scale of the samples were searched for: few data have a second optimum that
   is flatter and nearly as low. Of those this is one whose flat optimum has the lower loss on fresh
   samples too; others have not. It illustrates the metric and the bound, and is no evidence.
   The verdict also hangs on what noise counts for: with κ = 0.1 or KL/n the bound prefers the sharp
   one, with κ of 0.5 or more and KL/√n the flat one.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.toy import plots as _toy_plots
from flatreg import measures

SEED, SAMPLES, C = 165, 100, -7.0
EDGE = 12.0  # the plane is [-EDGE, EDGE]²
KAPPA = 0.5  # the most noise on a weight
WEIGHT_OF_KL = SAMPLES**-0.5


class Optimum(NamedTuple):
    """A minimum of the loss on the plane, and what is measured there."""

    w: np.ndarray
    loss: float
    eigenvalues: np.ndarray  # ascending
    metric: float
    bound: float
    fresh_loss: float


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the mixture, whose three centers depend on the seed alone, and their labels."""
    rng = np.random.default_rng(SEED)
    centers = 3 * rng.normal(size=(3, 2))
    which = rng.integers(3, size=count)
    x = centers[which] + rng.normal(size=(count, 2))
    radius = np.linalg.norm(x, axis=1)
    return x, (radius > np.median(radius)).astype(np.int32)


def logits(w: jax.Array, x: jax.Array) -> jax.Array:
    """The network."""
    weights = jnp.array([[w[0], C], [0.0, w[1]]])
    for _ in range(4):
        x = jax.nn.sigmoid(x @ weights.T)
    z: jax.Array = x @ weights.T
    return z


def batch_loss(w: jax.Array, batch: Any) -> jax.Array:
    """Mean cross-entropy."""
    x, labels = batch
    log_probabilities = jax.nn.log_softmax(logits(w, x))
    picked: jax.Array = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(picked)


def measured(loss_fn: measures.LossFn, w: jax.Array) -> dict[str, jax.Array]:
    """Loss, metric and bound at one point of the plane."""
    diagonal = measures.diagonal(loss_fn, w, probes=None).value
    radius = KAPPA * 2**0.5  # the ball around the box of the noise
    found = measures.hessian_lipschitz(loss_fn, w, jax.random.key(0), radius, starts=3, steps=6)
    sigma = measures.optimal_noise(diagonal, found.value, KAPPA, WEIGHT_OF_KL)
    loss = loss_fn(w)
    expected = measures.expected_loss_bound(loss, sigma, diagonal, found.value, KAPPA)
    kl = measures.uniform_kl(w, sigma, EDGE + KAPPA)
    return {
        "loss": loss,
        "metric": measures.pacgen(w, diagonal, found.value).value,
        "bound": expected + WEIGHT_OF_KL * kl,
    }


def over_plane(function: Callable[[jax.Array], Any], side: np.ndarray) -> Any:
    """A function of w over the square of positions: arrays of (side, side)."""
    plane = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    values = jax.jit(lambda plane: jax.lax.map(function, plane, batch_size=256))(plane)
    return jax.tree.map(lambda v: np.asarray(v).reshape(len(side), len(side)), values)


def optima(loss_fn: measures.LossFn, fresh_loss_fn: measures.LossFn) -> list[Optimum]:
    """All minima inside the plane, the lowest first: a grid's, refined by Newton's method."""
    side = np.linspace(-EDGE, EDGE, 97)
    losses = over_plane(loss_fn, side)
    around = [
        np.roll(losses, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    ]
    low = np.argwhere((losses < np.min(around, axis=0))[1:-1, 1:-1]) + 1
    measure = jax.jit(partial(measured, loss_fn))
    derivatives = jax.jit(lambda w: (jax.grad(loss_fn)(w), jax.hessian(loss_fn)(w)))
    found: list[Optimum] = []
    for w in np.asarray(jax.jit(jax.vmap(partial(_newton, loss_fn)))(side[low])):
        gradient, hessian = derivatives(w)
        values = np.linalg.eigvalsh(hessian)
        inside = np.abs(w).max() < EDGE and np.linalg.norm(gradient) < 1e-9 and values[0] > 0
        if inside and all(np.linalg.norm(w - other.w) > 1e-3 for other in found):
            at = measure(w)
            loss, metric, bound = (float(at[name]) for name in ("loss", "metric", "bound"))
            found.append(Optimum(w, loss, values, metric, bound, float(fresh_loss_fn(w))))
    return sorted(found, key=lambda optimum: optimum.loss)


def _newton(loss_fn: measures.LossFn, w: jax.Array) -> jax.Array:
    """A minimum near w: steps of at most 0.1, downhill also where the loss is concave."""

    def step(_: int, w: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(jax.hessian(loss_fn)(w))
        along = (vectors.T @ jax.grad(loss_fn)(w)) / jnp.maximum(jnp.abs(values), 1e-4)
        return w - vectors @ along * jnp.minimum(1, 0.1 / jnp.maximum(jnp.linalg.norm(along), 0.1))

    refined: jax.Array = jax.lax.fori_loop(0, 60, step, w)
    return refined


def sharp_and_flat() -> tuple[measures.LossFn, Optimum, Optimum]:
    """The training loss with its global optimum, and the flattest of the others."""
    data, fresh = samples(SAMPLES), samples(50 * SAMPLES)
    loss_fn, fresh_loss_fn = (partial(batch_loss, batch=batch) for batch in (data, fresh))
    lowest, *others = optima(loss_fn, fresh_loss_fn)
    return loss_fn, lowest, min(others, key=lambda optimum: optimum.eigenvalues[-1])


def draw(file: pathlib.Path, points: int) -> dict[str, Optimum]:
    """Measures over the plane, points a side, draws, and returns the two optima."""
    loss_fn, sharp, flat = sharp_and_flat()
    marked = {"sharp, global": sharp, "flat, local": flat}
    side = np.linspace(-EDGE, EDGE, points)
    surfaces = over_plane(partial(measured, loss_fn), side)
    _toy_plots.draw(file, side, surfaces, marked, samples(SAMPLES), jax.jit(logits))
    return marked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.toy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", default="results/toy/toy.png", help="the picture")
    parser.add_argument("--points", type=int, default=61, help="a side of the plane (61)")
    args = parser.parse_args(argv)
    table = Table("", "loss", "λ_max", "metric Ψ", "bound", "fresh loss", box=None)
    with jax.enable_x64(True):
        for label, at in draw(pathlib.Path(args.out), args.points).items():
            numbers = (at.loss, at.eigenvalues[-1], at.metric, at.bound, at.fresh_loss)
            table.add_row(label, *(f"{number:.3g}" for number in numbers))
    Console().print(table, f"Drawn in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
